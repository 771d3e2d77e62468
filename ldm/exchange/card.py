"""A model card: the README.md of a page on the hub, with the figures of an evaluation where there is one."""

import math
from collections.abc import Iterator, Mapping

from basicsr.metrics.table import METRICS
from ldm.evaluation.report.summary import CheckpointResult, Report


def model_card(name: str, facts: Mapping[str, str], report: Report | None = None, repo: str = "OWNER/NAME") -> str:
    """Markdown with the hub's header of YAML.

    facts: what is known of the weights (step, seed, edge_options, base_model, licence). report: an evaluation, of which
    the checkpoint of that step is shown, or every run's best where none has it.
    """
    return "\n".join([*_yaml(facts), *_about(name, facts, repo), *(_figures(report, facts) if report else [])]) + "\n"


def _yaml(facts: Mapping[str, str]) -> Iterator[str]:
    licence, _, name = facts.get("licence", "").partition(": ")
    yield "---"
    if licence:
        yield f"license: {licence}"
    if name:
        yield f"license_name: {name!r}"
    base = facts.get("base_model", "")
    if base.startswith("hf://"):
        yield f"base_model: {'/'.join(base.removeprefix('hf://').partition('@')[0].split('/')[:2])}"
    yield from (
        "library_name: stablesr-edge",
        "pipeline_tag: image-to-image",
        "tags: [super-resolution, stablesr]",
        "---",
    )


def _about(name: str, facts: Mapping[str, str], repo: str) -> Iterator[str]:
    yield from (f"# {name}", "", "A StableSR model for image super-resolution, trained with StableSR-Edge.", "")
    yield from ("```python", "from ldm.inference import Upscaler", "")
    yield from (f'large = Upscaler.from_pretrained("{repo}")(small)', "```", "")
    if facts:
        yield from ("| | |", "|---|---|", *(f"| {key} | {_cell(value)} |" for key, value in facts.items()), "")


def _cell(value: str) -> str:
    return value.replace("|", r"\|").replace("\n", " ")


def _figures(report: Report, facts: Mapping[str, str]) -> Iterator[str]:
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
        yield f"| {_cell(name)} | {' | '.join(told)} |"


def _rows(report: Report, step: str | None) -> Iterator[tuple[str, CheckpointResult]]:
    """Every run's checkpoint of that step; the best one where it has none."""
    first = report.metrics[0]
    for run in report.runs:
        at_step = next((each for each in run.checkpoints if each.step is not None and str(each.step) == step), None)
        result = at_step or run.best(first) or run.checkpoints[-1]
        yield (run.label if result.step is None else f"{run.label}, step {result.step}"), result
