"""One checkpoint of each run, and the other arms, against a baseline, picture by picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from basicsr.metrics.table import METRICS
from basicsr.utils.errors import FieldError, did_you_mean
from ldm.evaluation.report.statistics import Paired, compare
from ldm.evaluation.report.summary import CheckpointResult, Report, RunResult


@dataclass(frozen=True)
class Comparison:
    """The runs' chosen checkpoints; the baseline comes first."""

    runs: tuple[RunResult, ...]
    chosen: tuple[CheckpointResult, ...]
    how: str  # the checkpoints were chosen, in words; empty where there is nothing to choose

    @property
    def when(self) -> str:
        """`how` as the end of a sentence."""
        return f", at {self.how}" if self.how else ""

    @property
    def pairs(self) -> list[tuple[RunResult, CheckpointResult]]:
        """Each run with its chosen checkpoint."""
        return list(zip(self.runs, self.chosen, strict=True))

    @property
    def others(self) -> list[tuple[RunResult, CheckpointResult]]:
        """All but the baseline."""
        return self.pairs[1:]

    def paired(self, other: CheckpointResult, metric: str) -> Paired:
        """From the baseline to another run."""
        higher = METRICS[metric].higher_is_better
        return compare(self.chosen[0].values(metric), other.values(metric), higher_is_better=higher)

    def rows(self, metrics: Sequence[str]) -> list[dict[str, Any]]:
        """One for each other run and metric."""
        return [self._row(run, result, metric) for run, result in self.others for metric in metrics]

    def _row(self, run: RunResult, result: CheckpointResult, metric: str) -> dict[str, Any]:
        paired, base, base_result = self.paired(result, metric), self.runs[0], self.chosen[0]
        about = {"run": run.name, "step": result.step, "baseline": base.name, "baseline_step": base_result.step}
        counts = {"wins": paired.wins, "losses": paired.losses, "ties": paired.ties}
        return about | {"metric": metric} | paired.difference._asdict() | counts


def compare_runs(report: Report, baseline: str | None = None, at: str = "last") -> Comparison:
    """Choose what is compared.

    Args:
        report: of at least one run or other arm.
        baseline: a run's name or label; None for the run with the smallest edge_loss_weight, the first of equals, and
            for the first arm where there is no run.
        at: "last", the newest step that all runs have, else each one's newest; or a metric's name, for each run's best
            checkpoint by it, which flatters runs with many checkpoints.

    Raises:
        FieldError: no such run or metric, or a metric that is defined nowhere.
    """
    runs = list(report.runs)
    if baseline is None:
        first = min(runs, key=_by_weight)
    else:
        named = [run for run in runs if baseline in (run.name, run.label)]
        if not named:
            raise FieldError("baseline", f"{baseline!r} is not known{did_you_mean(baseline, [r.label for r in runs])}")
        first = named[0]
    runs.remove(first)
    runs.insert(0, first)
    chosen, how = _chosen(runs, at, report.metrics)
    return Comparison(tuple(runs), chosen, how)


def _by_weight(run: RunResult) -> tuple[bool, bool, float]:
    weight = run.edge_loss_weight
    return weight is None, isinstance(weight, str), weight if isinstance(weight, float | int) else 0.0


def _chosen(runs: Sequence[RunResult], at: str, metrics: Sequence[str]) -> tuple[tuple[CheckpointResult, ...], str]:
    if at == "last":
        return _newest(runs)
    if at not in metrics:
        raise FieldError("at", f"{at!r} is not known{did_you_mean(at, ['last', *metrics])}")
    best = [run.best(at) for run in runs]
    found = tuple(each for each in best if each is not None)
    if len(found) < len(runs):
        raise FieldError("at", f"{at} is defined for no picture of {runs[best.index(None)].name}; choose another one")
    return found, f"each run's best by {METRICS[at].label} on these pictures, which flatters runs with many checkpoints"


def _newest(runs: Sequence[RunResult]) -> tuple[tuple[CheckpointResult, ...], str]:
    newest = tuple(run.checkpoints[-1] for run in runs)
    steps = [{each.step for each in run.checkpoints} for run in runs if run.edge_loss_weight is not None]
    if not steps:
        return newest, ""
    common = [step for step in set.intersection(*steps) if step is not None]
    if not common:
        return newest, "the newest of each run; the runs share no step"
    step = max(common)
    same = (next((each for each in run.checkpoints if each.step == step), run.checkpoints[-1]) for run in runs)
    return tuple(same), f"step {step}, the newest that all runs have" if len(steps) > 1 else f"step {step}, the newest"
