"""A report's data: what `report.json` holds, and the CSV files."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from basicsr.metrics.table import METRICS
from basicsr.utils import checks
from basicsr.utils.errors import FieldError, UserError
from basicsr.utils.files import write_whole
from ldm.evaluation.report.statistics import Interval, bootstrap_mean
from ldm.modules.losses.edge_weight import EdgeWeight

FILE = "report.json"
# What a model that sees edges is told, from the least to the most, in words. `ldm.inference.edges` says what they are.
CONDITIONS = {
    "none": "no edges",
    "dummy": "dummy edges",
    "edges": "edges",
    "file": "drawn edges",
    "gt": "GT edges (oracle)",
}
OPTIONAL = ("lpips",)  # metrics that are measured where they are asked for
Sampler = Literal["ddpm", "ddim", "dpmpp", "unipc"]


@dataclass(frozen=True)
class Settings:
    """What an evaluation's numbers depend on, beside checkpoint and pictures.

    Raises:
        FieldError: a number out of range, or a sampler that there is not.
    """

    steps: int
    sampler: Sampler
    seed: int
    sf: int
    border: int  # pixels cut off before measuring
    lpips: str = ""  # the network of `basicsr.metrics.lpips`, "" for no LPIPS
    lpips_weights: str = ""  # its file, "" for the published one

    def __post_init__(self) -> None:
        checks.whole_number("steps", self.steps, 1)
        checks.whole_number("sf", self.sf, 1)
        checks.whole_number("border", self.border, 0)
        if self.sampler not in get_args(Sampler):
            raise FieldError("sampler", f"is {self.sampler!r}: give {', '.join(get_args(Sampler))}")


@dataclass(frozen=True)
class CheckpointResult:
    """One checkpoint's numbers, or those of pictures that come from elsewhere, which have no step."""

    step: int | None
    path: str
    pictures: dict[str, dict[str, float]]  # picture -> metric -> value
    restored: dict[str, str]  # picture -> file, absolute or relative to the report's folder

    def values(self, metric: str) -> dict[str, float]:
        """Picture -> value."""
        return {name: metrics[metric] for name, metrics in self.pictures.items() if metric in metrics}

    def mean(self, metric: str) -> Interval:
        """Over the pictures that have a value."""
        return bootstrap_mean(list(self.values(metric).values()))


@dataclass(frozen=True)
class RunResult:
    """One run's checkpoints, by step; or one other arm, whose weight is None and whose only result has no step.

    A run that sees edges is several of these, one for each condition (a key of `CONDITIONS`), and `group` is its name;
    all others have neither.
    """

    name: str
    label: str
    edge_loss_weight: float | str | None
    checkpoints: tuple[CheckpointResult, ...]
    condition: str = ""
    group: str = ""

    @property
    def edge_weight(self) -> EdgeWeight | None:
        """`edge_loss_weight`, parsed."""
        return None if self.edge_loss_weight is None else EdgeWeight.parse(self.edge_loss_weight)

    @property
    def weight(self) -> str:
        """Such as `0.1` or `auto:0.2`; a dash for an arm that is not a run."""
        return "–" if self.edge_weight is None else str(self.edge_weight)

    @property
    def origin(self) -> str:
        """Where its pictures come from, in words."""
        if self.edge_loss_weight is not None:
            told = f", told {CONDITIONS[self.condition]}" if self.condition else ""
            return f"edge_loss_weight {self.weight}{told}"
        path = self.checkpoints[0].path
        return f"pictures from {path}" if path else "the degraded pictures as they are, at full size"

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
    pictures: dict[str, dict[str, str]]  # picture -> {"gt": file, "lq": file}; no lq where there is none
    runs: tuple[RunResult, ...]
    left_out: tuple[str, ...]  # a line for everything that could not be used

    def about(self, run: RunResult) -> dict[str, Any]:
        """What CSV files say of a run: its conditions have a column where there are any."""
        named = {"run": run.group or run.name} | ({"condition": run.condition} if self.has_conditions else {})
        return named | {"edge_loss_weight": run.edge_loss_weight}

    @property
    def has_conditions(self) -> bool:
        """Whether a run sees edges."""
        return any(run.condition for run in self.runs)

    @property
    def metrics(self) -> list[str]:
        """Those that at least one picture has a value for."""
        return [metric for metric in METRICS if any(run.best(metric) for run in self.runs)]

    @property
    def undefined(self) -> list[str]:
        """A line for each metric that was measured and is defined for no picture."""
        missing = [METRICS[name] for name in METRICS if name not in self.metrics and name not in OPTIONAL]
        return [f"{metric.label}: not defined for any of these pictures ({metric.meaning})" for metric in missing]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One for each run, checkpoint and picture."""
        return [
            self.about(run) | {"step": checkpoint.step, "picture": picture} | values
            for run in self.runs
            for checkpoint in run.checkpoints
            for picture, values in checkpoint.pictures.items()
        ]

    @property
    def means(self) -> list[dict[str, Any]]:
        """One row for each run, checkpoint and metric."""
        return [
            self.about(run) | {"step": checkpoint.step, "metric": metric} | checkpoint.mean(metric)._asdict()
            for run in self.runs
            for checkpoint in run.checkpoints
            for metric in self.metrics
        ]


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
        return _as_report(folder, json.loads(file.read_bytes()))
    except FileNotFoundError as error:
        raise UserError(f"{file} is not there: make it with evaluate --out {folder}") from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is damaged: make it again with evaluate --out {folder}") from error


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows as CSV, whole or not at all; a value that is not defined is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
    write_whole(path, text.getvalue())


def numbers_from(stored: Mapping[str, Any]) -> dict[str, float]:
    """Metrics as JSON holds them, where null stands for NaN.

    Raises:
        ValueError, TypeError, AttributeError: they are damaged.
    """
    return {str(name): math.nan if value is None else float(value) for name, value in stored.items()}


def _as_report(folder: Path, content: Any) -> Report:
    """What a page needs is looked at here, so that a damaged file is found before anything is made from it."""
    runs = tuple(_as_run(run) for run in content["runs"])
    pictures = {name: {kind: str(path) for kind, path in files.items()} for name, files in content["pictures"].items()}
    measured = {name for run in runs for each in run.checkpoints for name in each.pictures}
    if not runs or not measured <= pictures.keys() or not all("gt" in files for files in pictures.values()):
        raise ValueError("no run, or a picture without its files")
    left_out = tuple(str(line) for line in content["left_out"])
    return Report(folder, Settings(**content["settings"]), str(content["inputs"]), pictures, runs, left_out)


def _as_run(content: Any) -> RunResult:
    checkpoints = tuple(
        CheckpointResult(
            None if each["step"] is None else int(each["step"]),
            str(each["path"]),
            {name: numbers_from(metrics) for name, metrics in each["pictures"].items()},
            {name: str(path) for name, path in each["restored"].items()},
        )
        for each in content["checkpoints"]
    )
    weight, condition = content["edge_loss_weight"], str(content.get("condition", ""))
    if not checkpoints:
        raise ValueError("a run without results")
    if weight is not None:
        EdgeWeight.parse(weight)
    group = str(content.get("group", ""))
    if bool(condition) != bool(group) or condition not in ("", *CONDITIONS):
        raise ValueError("a condition that there is not, or one of no run")
    return RunResult(str(content["name"]), str(content["label"]), weight, checkpoints, condition, group)


def _cell(value: Any) -> Any:
    """A value as spreadsheets should take it: a text that they would run as a formula is marked as a text.

    Control characters, which file names may hold, become U+FFFD.
    """
    if not isinstance(value, str):
        return "" if _is_nan(value) else value
    text = "".join(sign if sign.isprintable() else "\ufffd" for sign in value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _with_nulls(node: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(node, dict):
        return {key: _with_nulls(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [_with_nulls(value) for value in node]
    return None if _is_nan(node) else node
