"""A report as one HTML file that needs nothing else: no network, no other file.

What is shown is put together here, as plain values; the templates turn it into HTML and escape every text.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from basicsr.metrics.table import METRICS
from basicsr.utils.files import write_whole
from ldm.evaluation.report import charts
from ldm.evaluation.report.charts import Series, colour, in_words
from ldm.evaluation.report.comparison import Comparison, compare_runs
from ldm.evaluation.report.gallery import Gallery, Version, data_uri, edge_picture, frame_uri, overview, zoom_window
from ldm.evaluation.report.statistics import CONFIDENCE, Interval
from ldm.evaluation.report.summary import Report, RunResult, write_csv

FILE = "report.html"
SLIDER_PICTURES, SLIDER_RUNS, GALLERY_RUNS = 12, 6, 3
GALLERY_METRIC = "edge_f1"
TABLE_METRICS = ("psnr_y", "ssim_y", "edge_f1", "edge_psnr")

Section = dict[str, Any] | None  # what a section's template shows; None where there is nothing to show


def write_page(report: Report, comparison: Comparison | None = None) -> Path:
    """Write report.html, and comparison.csv where there are several runs; by default the newest step is compared."""
    comparison = comparison or compare_runs(report)
    if comparison.others:
        write_csv(report.folder / "comparison.csv", comparison.rows(report.metrics))
    sections: dict[str, Section] = {
        "overview": _overview(report, comparison),
        "best_checkpoints": _best(report),
        "over_training": _curves(report),
        "edge_loss_weight": _weights(report, comparison),
        "differences": _differences(report, comparison),
        "slider": _slider(report, comparison),
        "worst_and_best_pictures": _gallery(report, comparison),
        "every_picture": _pictures(report, comparison),
        "how_it_was_measured": {"settings": report.settings, "inputs": report.inputs},
    }
    page = (
        templates(report.runs)
        .get_template("page.html")
        .render(
            title=report.folder.resolve().name,
            report=report,
            comparison=comparison,
            facts=_facts(report),
            sections={name: section for name, section in sections.items() if section},
        )
    )
    write_whole(report.folder / FILE, page)
    return report.folder / FILE


def templates(runs: Sequence[RunResult]) -> Environment:
    """The templates of this package; whatever text comes into them is escaped."""
    environment = Environment(
        loader=PackageLoader("ldm.evaluation.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {}  # keys stay in their order
    colours = {run.name: colour(index) for index, run in enumerate(runs)}
    environment.globals |= {"METRICS": METRICS, "CONFIDENCE": CONFIDENCE, "count": _count}
    environment.globals["colour_of"] = lambda run: colours[run.name]
    return environment


def _facts(report: Report) -> str:
    runs = [run for run in report.runs if run.edge_loss_weight is not None]
    facts = [_count(len(runs), "run"), _count(sum(len(run.checkpoints) for run in runs), "checkpoint")] if runs else []
    if others := len(report.runs) - len(runs):
        facts.append(_count(others, "other arm"))
    facts.append(_count(len(report.pictures), "picture"))
    if runs:
        facts.append(f"{report.settings.steps} {report.settings.sampler.upper()} steps")
    if report.settings.lpips:
        facts.append(f"LPIPS on {report.settings.lpips}")
    return " · ".join(facts)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _overview(report: Report, comparison: Comparison) -> Section:
    rows = []
    for metric in report.metrics:
        info, means = METRICS[metric], [result.mean(metric) for result in comparison.chosen]
        known = [each.mean for each in means if each.pictures]
        best = (max if info.higher_is_better else min)(known) if len(known) > 1 else None
        cells = [_cell(each, info.decimals, len(report.pictures)) | {"best": each.mean == best} for each in means]
        rows.append((metric, cells))
    return {"rows": rows}


def _cell(interval: Interval, decimals: int, pictures: int) -> dict[str, str]:
    mean, _, rest = in_words(interval, decimals).partition(" ")
    if 0 < interval.pictures < pictures:
        rest += f" of {interval.pictures} pictures"
    return {"mean": mean, "rest": rest}


def _trained_long(report: Report) -> bool:
    return any(len(run.checkpoints) > 1 for run in report.runs)


def _best(report: Report) -> Section:
    if not _trained_long(report):
        return None
    return {"rows": [(metric, [_best_cell(run, metric) for run in report.runs]) for metric in report.metrics]}


def _best_cell(run: RunResult, metric: str) -> dict[str, str]:
    best = run.best(metric)
    if best is None:
        return {"step": "–", "mean": ""}
    step = "" if best.step is None else f"step {best.step}"
    return {"step": step, "mean": f"{best.mean(metric).mean:.{METRICS[metric].decimals}f}"}


def _curves(report: Report) -> Section:
    if not _trained_long(report):
        return None
    plots = []
    for metric in report.metrics:
        series = [
            Series(run.label, colour(index), tuple((each.step, each.mean(metric)) for each in run.checkpoints))
            for index, run in enumerate(report.runs)
        ]
        plots.append((metric, charts.curves(series, "step", METRICS[metric].decimals)))
    return {"plots": plots}


def _weights(report: Report, comparison: Comparison) -> Section:
    # A weight that the gradients decide is no number, and stands nowhere on the axis.
    shown = [(run, each) for run, each in comparison.pairs if not isinstance(run.edge_loss_weight, str)]
    if len({run.edge_loss_weight for run, _ in shown if run.edge_loss_weight is not None}) < 2:
        return None
    places = {run.name: index for index, run in enumerate(report.runs)}
    plots = []
    for metric in report.metrics:
        series = [
            Series(run.label, colour(places[run.name]), ((_number(run.edge_loss_weight), result.mean(metric)),))
            for run, result in shown
        ]
        plots.append((metric, charts.curves(series, "edge_loss_weight", METRICS[metric].decimals)))
    return {"plots": plots}


def _number(weight: float | str | None) -> float | None:
    return None if weight is None else float(weight)


def _differences(report: Report, comparison: Comparison) -> Section:
    tables = []
    for run, result in comparison.others:
        rows = []
        for metric in report.metrics:
            paired = comparison.paired(result, metric)
            change = paired.difference
            if change.pictures:
                bar = charts.interval_bar(change, max(abs(change.low), abs(change.high)), better=paired.better)
                words = in_words(change, METRICS[metric].decimals, "+")
                rows.append((metric, words, bar, paired.verdict, paired.score.removeprefix("won ")))
        tables.append((run, rows))
    return {"tables": tables} if tables else None


def _slider(report: Report, comparison: Comparison) -> Section:
    gallery = Gallery.of(report, comparison, list(report.pictures)[:SLIDER_PICTURES])
    if not gallery.versions:
        return {"gone": gallery.gone, "pictures": {}, "more": 0} if gallery.gone else None
    pictures: dict[str, dict[str, str]] = {}
    for name, versions in gallery.versions.items():
        frames = pictures[name] = {}
        for version in _some(versions, SLIDER_RUNS):
            label = version.label  # a run may be called like another version
            while label in frames:
                label += " "
            frames[label] = frame_uri(version)
    more = len(report.pictures) - len(pictures) - len(gallery.gone)
    return {"gone": gallery.gone, "pictures": pictures, "more": more}


def _some(versions: Sequence[Version], runs: int) -> list[Version]:
    """All but the restored versions beyond the first `runs`."""
    beyond = {id(version) for version in [each for each in versions if each.scores is not None][runs:]}
    return [version for version in versions if id(version) not in beyond]


def _gallery(report: Report, comparison: Comparison) -> Section:
    values = [result.values(GALLERY_METRIC) for result in comparison.chosen]
    shared = [name for name in values[0] if all(name in each and not math.isnan(each[name]) for each in values)]
    ranked = sorted(shared, key=lambda name: sum(each[name] for each in values))
    picks = {"worst": ranked[:2], "best": ranked[2:][-2:]}
    if comparison.others:
        gains = sorted(shared, key=lambda name: values[-1][name] - values[0][name])
        label, base = comparison.runs[-1].label, comparison.runs[0].label
        picks[f"where {label} loses most against {base}"] = gains[:1]
        picks[f"where {label} gains most against {base}"] = gains[1:][-1:]
    titles: dict[str, list[str]] = {}
    for title, names in picks.items():
        for name in names:
            titles.setdefault(name, []).append(title)
    gallery = Gallery.of(report, comparison, list(titles))
    cards = [_card(name, ", ".join(titles[name]), versions) for name, versions in gallery.versions.items()]
    return {"metric": GALLERY_METRIC, "cards": cards} if cards else None


def _card(name: str, title: str, versions: Sequence[Version]) -> dict[str, Any]:
    window = zoom_window(versions)
    tiles = [
        {
            "label": version.label,
            "text": version.scores and f"F1 {version.scores['edge_f1']:.3f} · {version.scores['psnr_y']:.2f} dB",
            "crop": data_uri(version.pixels[window], "PNG"),
            "edges": data_uri(edge_picture(version, versions[-1], window), "PNG"),
        }
        for version in _some(versions, GALLERY_RUNS)
    ]
    return {"name": name, "title": title, "whole": data_uri(overview(versions[-1], window), "JPEG"), "tiles": tiles}


def _pictures(report: Report, comparison: Comparison) -> Section:
    metrics = [metric for metric in TABLE_METRICS if metric in report.metrics]
    rows = []
    for name in report.pictures:
        for run, result in comparison.pairs:
            values = result.pictures.get(name, {})
            cells = [_fixed(values.get(metric, math.nan), METRICS[metric].decimals) for metric in metrics]
            rows.append((name if run is comparison.runs[0] else "", run, cells))
    return {"metrics": metrics, "rows": rows}


def _fixed(value: float, decimals: int) -> str:
    return "–" if math.isnan(value) else f"{value:.{decimals}f}"
