"""One checkpoint of each run against a baseline run, picture by picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from basicsr.metrics.measure import METRICS
from basicsr.utils import checks
from basicsr.utils.errors import UserError
from ldm.evaluation.statistics import Paired, compare
from ldm.evaluation.summary import CheckpointResult, Report, RunResult


@dataclass(frozen=True)
class Comparison:
    """The runs' chosen checkpoints; the baseline comes first."""

    runs: tuple[RunResult, ...]
    chosen: tuple[CheckpointResult, ...]
    how: str  # the checkpoints were chosen, in words

    @property
    def others(self) -> list[tuple[RunResult, CheckpointResult]]:
        return list(zip(self.runs, self.chosen, strict=True))[1:]

    def paired(self, other: CheckpointResult, metric: str) -> Paired:
        """From the baseline to another run."""
        higher = METRICS[metric].higher_is_better
        return compare(self.chosen[0].values(metric), other.values(metric), higher)

    def rows(self, metrics: Sequence[str]) -> list[dict[str, Any]]:
        """One for each other run and metric."""
        return [
            {"run": run.name, "step": result.step, "baseline": self.runs[0].name, "baseline_step": self.chosen[0].step,
             "metric": metric, **paired.difference._asdict(), "wins": paired.wins, "losses": paired.losses,
             "ties": paired.ties}
            for run, result in self.others for metric in metrics for paired in [self.paired(result, metric)]
        ]  # fmt: skip


def compare_runs(report: Report, baseline: str | None = None, at: str = "last") -> Comparison:
    """Choose what is compared.

    Args:
        baseline: a run's name or label; None for the run with the smallest edge_loss_weight, the first of equals.
        at: "last", the newest step that all runs have, else each one's newest; or a metric's name, for each run's best
            checkpoint by it, which flatters runs with many checkpoints.

    Raises:
        UserError: no such run or metric, or a metric that is defined nowhere.
    """
    runs = list(report.runs)
    if baseline is None:
        first = min(runs, key=lambda run: (isinstance(run.edge_loss_weight, str), run.edge_loss_weight))
    else:
        named = [run for run in runs if baseline in (run.name, run.label)]
        if not named:
            raise checks.unknown("--baseline", baseline, [run.label for run in runs])
        first = named[0]
    runs.remove(first)
    runs.insert(0, first)
    chosen, how = _chosen(runs, at, report.metrics)
    return Comparison(tuple(runs), chosen, how)


def _chosen(runs: Sequence[RunResult], at: str, metrics: Sequence[str]) -> tuple[tuple[CheckpointResult, ...], str]:
    if at == "last":
        common = set.intersection(*({each.step for each in run.checkpoints} for run in runs))
        if not common:
            return tuple(run.checkpoints[-1] for run in runs), "the newest of each run; the runs share no step"
        step = max(common)
        same = tuple(each for run in runs for each in run.checkpoints if each.step == step)
        return same, f"step {step}, the newest that all runs have" if len(runs) > 1 else f"step {step}, the newest"
    if at not in metrics:
        raise checks.unknown("--at", at, ["last", *metrics])
    best = [run.best(at) for run in runs]
    found = tuple(each for each in best if each is not None)
    if len(found) < len(runs):
        raise UserError(f"--at {at}: it is defined for no picture of {runs[best.index(None)].name}; choose another one")
    return found, f"each run's best by {METRICS[at].label} on these pictures, which flatters runs with many checkpoints"
