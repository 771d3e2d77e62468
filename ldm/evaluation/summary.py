"""From records to a report's data: what `report.json` holds, and the CSV files."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from basicsr.metrics.measure import METRICS
from basicsr.utils.errors import UserError
from ldm.evaluation.records import Record, Settings, write_whole
from ldm.evaluation.statistics import Interval, bootstrap_mean

FILE = "report.json"


@dataclass(frozen=True)
class CheckpointResult:
    """One checkpoint's numbers."""

    step: int
    path: str
    pictures: dict[str, dict[str, float]]  # picture -> metric -> value
    restored: dict[str, str]  # picture -> file, relative to the report's folder

    def values(self, metric: str) -> dict[str, float]:
        """Picture -> value."""
        return {name: metrics[metric] for name, metrics in self.pictures.items() if metric in metrics}

    def mean(self, metric: str) -> Interval:
        return bootstrap_mean(list(self.values(metric).values()))


@dataclass(frozen=True)
class RunResult:
    """One run's checkpoints, by step."""

    name: str
    label: str
    edge_loss_weight: float | str
    checkpoints: tuple[CheckpointResult, ...]

    def best(self, metric: str) -> CheckpointResult | None:
        """The checkpoint with the best mean; the earliest of equals. None where the metric is defined nowhere."""
        known = [each for each in self.checkpoints if not math.isnan(each.mean(metric).mean)]
        sign = 1 if METRICS[metric].higher_is_better else -1
        return max(known, key=lambda each: sign * each.mean(metric).mean, default=None)


@dataclass(frozen=True)
class Report:
    """Everything that a page is made from."""

    folder: Path
    settings: Settings
    inputs: str  # where the degraded pictures come from, in words
    pictures: dict[str, dict[str, str]]  # picture -> {"gt": file, "lq": file}
    runs: tuple[RunResult, ...]
    left_out: tuple[str, ...]  # a line for everything that could not be used

    @property
    def metrics(self) -> list[str]:
        """Those that at least one picture has a value for."""
        return [metric for metric in METRICS if any(run.best(metric) for run in self.runs)]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One for each run, checkpoint and picture."""
        return [
            {"run": run.name, "edge_loss_weight": run.edge_loss_weight, "step": checkpoint.step, "picture": picture,
             **values}
            for run in self.runs for checkpoint in run.checkpoints for picture, values in checkpoint.pictures.items()
        ]  # fmt: skip

    @property
    def means(self) -> list[dict[str, Any]]:
        """One row for each run, checkpoint and metric."""
        return [
            {"run": run.name, "edge_loss_weight": run.edge_loss_weight, "step": checkpoint.step, "metric": metric,
             **checkpoint.mean(metric)._asdict()}
            for run in self.runs for checkpoint in run.checkpoints for metric in self.metrics
        ]  # fmt: skip


def make_report(
    folder: Path, records: Sequence[Record], settings: Settings, inputs: str, left_out: Sequence[str]
) -> Report:
    """Collect what has been computed; records without a result are left out.

    Raises:
        UserError: nothing has been computed.
    """
    runs: dict[str, dict[int, CheckpointResult]] = {}
    about = {record.run.name: record.run for record in records}
    labels = [run.label for run in about.values()]
    for record in records:
        metrics = record.read()
        if metrics is None:
            continue
        steps = runs.setdefault(record.run.name, {})
        fresh = CheckpointResult(record.checkpoint.step, str(record.checkpoint.path), {}, {})
        result = steps.setdefault(record.checkpoint.step, fresh)
        result.pictures[record.picture.name] = metrics
        result.restored[record.picture.name] = record.restored.relative_to(folder).as_posix()
    if not runs:
        raise UserError("nothing could be evaluated" + "".join(f"; {line}" for line in left_out[:1]))
    results = tuple(
        RunResult(name, run.label if labels.count(run.label) == 1 else name, run.edge_loss_weight,
                  tuple(runs[name].values()))
        for name, run in about.items() if name in runs
    )  # fmt: skip
    pictures = {record.picture.name: {"gt": str(record.picture.gt.resolve()), "lq": str(record.picture.lq.resolve())}
                for record in records}  # fmt: skip
    return Report(folder, settings, inputs, pictures, results, tuple(left_out))


def save_report(report: Report) -> None:
    """Write report.json, results.csv (every picture) and checkpoints.csv (means with intervals)."""
    content = asdict(report)
    del content["folder"]
    write_whole(report.folder / FILE, json.dumps(_with_nulls(content), indent=1))
    write_csv(report.folder / "results.csv", report.rows)
    write_csv(report.folder / "checkpoints.csv", report.means)


def load_report(folder: Path) -> Report:
    """What `save_report` wrote.

    Raises:
        UserError: there is no report, or it is damaged.
    """
    file = folder / FILE
    try:
        content = json.loads(file.read_text())
        runs = tuple(
            RunResult(**{**run, "checkpoints": tuple(
                CheckpointResult(**{**each, "pictures": _with_nans(each["pictures"])}) for each in run["checkpoints"]
            )}) for run in content["runs"]
        )  # fmt: skip
        return Report(folder, Settings(**content["settings"]), content["inputs"], content["pictures"], runs,
                      tuple(content["left_out"]))  # fmt: skip
    except FileNotFoundError as error:
        raise UserError(f"{file} is not there: make it with scripts/evaluate.py --out {folder}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is damaged: make it again with scripts/evaluate.py --out {folder}") from error


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows as CSV, whole or not at all; a value that is not defined is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: "" if _is_nan(value) else value for key, value in row.items()} for row in rows)
    write_whole(path, text.getvalue())


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _with_nulls(node: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(node, dict):
        return {key: _with_nulls(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [_with_nulls(value) for value in node]
    return None if _is_nan(node) else node


def _with_nans(pictures: Mapping[str, Mapping[str, float | None]]) -> dict[str, dict[str, float]]:
    return {
        name: {metric: math.nan if value is None else value for metric, value in metrics.items()}
        for name, metrics in pictures.items()
    }
