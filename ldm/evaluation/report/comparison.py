"""One checkpoint of each run, and the other arms, against a baseline, picture by picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from basicsr.metrics.table import METRICS
from basicsr.utils.errors import FieldError, did_you_mean
from ldm.evaluation.report.statistics import Paired, compare
from ldm.evaluation.report.summary import CONDITIONS, CheckpointResult, Report, RunResult
from ldm.modules.losses.edge_weight import EdgeWeight


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

    @property
    def other_runs(self) -> list[tuple[RunResult, CheckpointResult]]:
        """Those of `others` that are no further condition of the baseline's own run."""
        group = self.runs[0].group
        return [pair for pair in self.others if not group or pair[0].group != group]

    @property
    def conditions(self) -> list[tuple[tuple[RunResult, CheckpointResult], tuple[RunResult, CheckpointResult]]]:
        """Every two conditions of each run, the one that is told less first."""
        order = [*CONDITIONS]
        groups = dict.fromkeys(run.group for run in self.runs if run.group)
        of_groups = [[pair for pair in self.pairs if pair[0].group == group] for group in groups]
        for members in of_groups:
            members.sort(key=lambda pair: order.index(pair[0].condition))
        return [two for members in of_groups for two in combinations(members, 2)]

    def paired(self, other: CheckpointResult, metric: str) -> Paired:
        """From the baseline to another run."""
        return paired(self.chosen[0], other, metric)

    def rows(self, metrics: Sequence[str]) -> list[dict[str, Any]]:
        """One for each other run and metric."""
        return [self._row(run, result, metric) for run, result in self.others for metric in metrics]

    def _row(self, run: RunResult, result: CheckpointResult, metric: str) -> dict[str, Any]:
        paired, base, base_result = self.paired(result, metric), self.runs[0], self.chosen[0]
        about = {"run": run.name, "step": result.step, "baseline": base.name, "baseline_step": base_result.step}
        return about | {"metric": metric} | _figures(paired)

    def condition_rows(self, metrics: Sequence[str]) -> list[dict[str, Any]]:
        """One for every two conditions of a run, and metric: the second minus the first."""
        return [
            {"run": run.group, "step": result.step, "condition": run.condition, "minus": less.condition}
            | {"metric": metric}
            | _figures(paired(less_result, result, metric))
            for (less, less_result), (run, result) in self.conditions
            for metric in metrics
        ]


def paired(first: CheckpointResult, second: CheckpointResult, metric: str) -> Paired:
    """What changes from the first to the second."""
    return compare(first.values(metric), second.values(metric), higher_is_better=METRICS[metric].higher_is_better)


def compare_runs(report: Report, baseline: str | None = None, at: str = "last") -> Comparison:
    """Choose what is compared.

    Args:
        report: of at least one run or other arm.
        baseline: a run's name or label; None for the run with the smallest edge_loss_weight, the first of equals, and
            for the first arm where there is no run; of a run that sees edges, what it is without.
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


def _by_weight(run: RunResult) -> tuple[bool, EdgeWeight, int]:
    order = ["", *CONDITIONS]
    return run.edge_weight is None, run.edge_weight or EdgeWeight(0.0), order.index(run.condition)


def _figures(paired: Paired) -> dict[str, Any]:
    counts = {"wins": paired.wins, "losses": paired.losses, "ties": paired.ties}
    return paired.difference._asdict() | counts


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
