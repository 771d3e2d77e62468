"""The figures of an evaluation, as a model card shows them."""

import math
from collections.abc import Iterator, Mapping

from basicsr.metrics.table import METRICS
from ldm.evaluation.report.summary import CheckpointResult, Report
from ldm.models.formats.card import cell


def figures(report: Report, facts: Mapping[str, str]) -> str:
    """Markdown of each run's checkpoint of the step that `facts` tells; of its best, where it has none."""
    return "\n".join(_lines(report, facts))


def _lines(report: Report, facts: Mapping[str, str]) -> Iterator[str]:
    metrics = report.metrics
    rows = list(_rows(report, facts.get("step")))
    pictures = len(report.pictures)
    yield f"## Evaluation\n\nOn {pictures} pictures; {report.inputs}; means with 95 % intervals over the pictures.\n"
    yield f"| | {' | '.join(f'{METRICS[metric].label}' for metric in metrics)} |"
    yield f"|---|{'---|' * len(metrics)}"
    for name, result in rows:
        cells = (result.mean(metric) for metric in metrics)
        told = [
            "–" if math.isnan(cell.mean) else f"{cell.mean:.4g} ({cell.low:.4g} to {cell.high:.4g})" for cell in cells
        ]
        yield f"| {cell(name)} | {' | '.join(told)} |"


def _rows(report: Report, step: str | None) -> Iterator[tuple[str, CheckpointResult]]:
    """Every run's checkpoint of that step; the best one where it has none."""
    first = report.metrics[0]
    for run in report.runs:
        at_step = next((each for each in run.checkpoints if each.step is not None and str(each.step) == step), None)
        result = at_step or run.best(first) or run.checkpoints[-1]
        yield (run.label if result.step is None else f"{run.label}, step {result.step}"), result
