"""A report as one HTML file that needs nothing else: no network, no other file."""

import json
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

from basicsr.metrics.measure import METRICS
from ldm.evaluation.charts import Series, colour, curves, in_words, interval_bar, weight_in_words
from ldm.evaluation.comparison import Comparison, compare_runs
from ldm.evaluation.gallery import Column, available, crop_uri, data_uri, edge_picture, frame_uri, overview, zoom_window
from ldm.evaluation.records import write_whole
from ldm.evaluation.statistics import CONFIDENCE
from ldm.evaluation.summary import Report, write_csv

FILE = "report.html"
TEMPLATE = Path(__file__).parent / "page.html"
SLIDER_PICTURES, SLIDER_RUNS, GALLERY_RUNS = 12, 6, 3
GALLERY_METRIC = "edge_f1"


def write_page(report: Report, comparison: Comparison | None = None) -> Path:
    """Write report.html, and comparison.csv where there are several runs; by default the newest step is compared."""
    comparison = comparison or compare_runs(report)
    if comparison.others:
        write_csv(report.folder / "comparison.csv", comparison.rows(report.metrics))
    sections = [
        ("Overview", _overview(report, comparison)),
        ("Best checkpoints", _best(report)),
        ("Over training", _curves(report)),
        ("Edge loss weight", _weights(report, comparison)),
        ("Differences", _differences(report, comparison)),
        ("Slider", _slider(report, comparison)),
        ("Worst and best pictures", _gallery(report, comparison)),
        ("Every picture", _pictures(report, comparison)),
        ("How it was measured", _protocol(report)),
    ]
    shown = [(title, html) for title, html in sections if html]
    links = "".join(f'<a href="#{_anchor(title)}">{title}</a>' for title, _ in shown)
    body = "".join(f'<section id="{_anchor(title)}"><h2>{title}</h2>{html}</section>' for title, html in shown)
    page = TEMPLATE.read_text(encoding="utf-8")
    filled = {"title": escape(report.folder.resolve().name), "facts": _facts(report), "links": links, "body": body}
    for key, value in filled.items():
        page = page.replace(f"{{{{{key}}}}}", value)
    write_whole(report.folder / FILE, page)
    return report.folder / FILE


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def _facts(report: Report) -> str:
    checkpoints = sum(len(run.checkpoints) for run in report.runs)
    numbers = ((len(report.runs), "run"), (checkpoints, "checkpoint"), (len(report.pictures), "picture"))
    sampling = f"{report.settings.steps} {report.settings.sampler.upper()} steps"
    facts = " · ".join([*(_count(*each) for each in numbers), sampling])
    return facts + "".join(f'<p class="warning">Left out: {escape(line)}</p>' for line in report.left_out)


def _number(value: float, decimals: int) -> str:
    return "–" if math.isnan(value) else f"{value:.{decimals}f}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _name(label: str, index: int) -> str:
    return f'<span class="dot" style="background:{colour(index)}"></span>{escape(label)}'


def _order(report: Report) -> dict[str, int]:
    """A run's place, which decides its colour."""
    return {run.name: index for index, run in enumerate(report.runs)}


def _heading(metric: str) -> str:
    info = METRICS[metric]
    unit = f' <span class="unit">{info.unit}</span>' if info.unit else ""
    arrow = "↑" if info.higher_is_better else "↓"
    return f'<span title="{escape(info.meaning)}">{info.label}{unit}</span> <span class="unit">{arrow}</span>'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table class="{kind}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _overview(report: Report, comparison: Comparison) -> str:
    order = _order(report)
    head = ["Metric", *(_name(run.label, order[run.name]) for run in comparison.runs)]
    rows = []
    for metric in report.metrics:
        info, means = METRICS[metric], [result.mean(metric) for result in comparison.chosen]
        known = [each.mean for each in means if each.pictures]
        best = (max if info.higher_is_better else min)(known) if len(known) > 1 else None
        cells = []
        for each in means:
            text = in_words(each, info.decimals)
            mean, _, rest = text.partition(" ")
            mean = f"<b>{mean}</b>" if each.mean == best else mean
            cells.append(f'{mean} <span class="unit">{rest}</span>')
        rows.append([_heading(metric), *cells])
    note = f"Means over the pictures at {escape(comparison.how)}, with {CONFIDENCE} % bootstrap intervals."
    return f"<p>{note} Bold is best; ↑ means that higher is better.</p>" + _table(head, rows, "numbers")


def _best(report: Report) -> str:
    if all(len(run.checkpoints) == 1 for run in report.runs):
        return ""
    head = ["Metric", *(_name(run.label, index) for index, run in enumerate(report.runs))]
    rows = []
    for metric in report.metrics:
        best = [run.best(metric) for run in report.runs]
        cells = [
            f'step {each.step} <span class="unit">{each.mean(metric).mean:.{METRICS[metric].decimals}f}</span>'
            if each else "–" for each in best
        ]  # fmt: skip
        rows.append([_heading(metric), *cells])
    return "<p>The checkpoint with the best mean, for each metric and run.</p>" + _table(head, rows, "numbers")


def _legend(report: Report) -> str:
    named = [(f"{run.label} (weight {weight_in_words(run.edge_loss_weight)})", i) for i, run in enumerate(report.runs)]
    names = (_name(*each) for each in named)
    return f'<p class="legend">{" ".join(f"<span>{name}</span>" for name in names)}</p>'


def _chart(metric: str, svg: str) -> str:
    return f"<figure><figcaption>{_heading(metric)}</figcaption>{svg}</figure>"


def _curves(report: Report) -> str:
    if all(len(run.checkpoints) == 1 for run in report.runs):
        return ""
    charts = []
    for metric in report.metrics:
        series = [
            Series(run.label, colour(index), tuple((each.step, each.mean(metric)) for each in run.checkpoints))
            for index, run in enumerate(report.runs)
        ]
        charts.append(_chart(metric, curves(series, "step", METRICS[metric].decimals)))
    note = f"<p>Means over the pictures with {CONFIDENCE} % bootstrap intervals. Point at a dot for its numbers.</p>"
    return f'{note}{_legend(report)}<div class="charts">{"".join(charts)}</div>'


def _weights(report: Report, comparison: Comparison) -> str:
    numbers = {run.name: run.edge_loss_weight for run in report.runs if not isinstance(run.edge_loss_weight, str)}
    if len(set(numbers.values())) < 2:
        return ""
    order, charts = _order(report), []
    for metric in report.metrics:
        series = [
            Series(run.label, colour(order[run.name]), ((numbers[run.name], result.mean(metric)),))
            for run, result in zip(comparison.runs, comparison.chosen, strict=True)
            if run.name in numbers
        ]
        charts.append(_chart(metric, curves(series, "edge_loss_weight", METRICS[metric].decimals)))
    note = f"<p>Means with {CONFIDENCE} % bootstrap intervals, at {escape(comparison.how)}.</p>"
    return f'{note}{_legend(report)}<div class="charts">{"".join(charts)}</div>'


def _differences(report: Report, comparison: Comparison) -> str:
    order, parts = _order(report), []
    base = comparison.runs[0]
    for run, result in comparison.others:
        rows = []
        for metric in report.metrics:
            info, paired = METRICS[metric], comparison.paired(result, metric)
            change = paired.difference
            if not change.pictures:
                continue
            better = (change.mean > 0) == info.higher_is_better if paired.certain else None
            verdict = {True: "better", False: "worse", None: "not clear"}[better]
            bar = interval_bar(change, max(abs(change.low), abs(change.high)), better)
            won = f"{paired.wins} of {change.pictures}" + (f", {paired.ties} equal" if paired.ties else "")
            rows.append([_heading(metric), in_words(change, info.decimals, "+"), bar, verdict, won])
        title = f"<h3>{_name(run.label, order[run.name])} minus {_name(base.label, order[base.name])}</h3>"
        parts.append(title + _table(["Metric", "Mean difference", "", "", "Pictures won"], rows, "differences"))
    note = f"<p>On the same pictures, at {escape(comparison.how)}, with {CONFIDENCE} % bootstrap intervals; "
    note += "“not clear” where the interval holds 0. With few pictures the intervals are too narrow.</p>"
    return note + "".join(parts) if parts else ""


def _slider(report: Report, comparison: Comparison) -> str:
    names = list(report.pictures)[:SLIDER_PICTURES]
    found = available(report, comparison, names)
    if not found:
        return ""
    pictures = {}
    for name, versions in found.items():
        kept = [*versions[: 1 + SLIDER_RUNS], versions[-1]] if len(versions) > SLIDER_RUNS + 2 else versions
        pictures[name] = {version.label: frame_uri(version) for version in kept}
    more = len(report.pictures) - len(pictures)
    note = f" {_count(more, 'further picture')} can be found in the folder restored/." if more else ""
    data = json.dumps(pictures).replace("<", "\\u003c")
    return f"""<p>Drag over the picture to compare.{note}</p>
<div class="controls"><label>Picture <select id="slider-picture"></select></label>
<label>Left <select id="slider-left"></select></label><label>Right <select id="slider-right"></select></label></div>
<div class="slider" id="slider"><img id="slider-under" alt="right"><img id="slider-over" alt="left">
<input type="range" min="0" max="1000" value="500" aria-label="where left ends and right begins"></div>
<script type="application/json" id="slider-data">{data}</script>"""


def _gallery(report: Report, comparison: Comparison) -> str:
    metric = GALLERY_METRIC
    values = [result.values(metric) for result in comparison.chosen]
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
    found = available(report, comparison, list(titles))
    cards = [_card(name, ", ".join(titles[name]), versions, comparison) for name, versions in found.items()]
    legend = ", ".join(f'<span class="{kind}">{kind}</span>' for kind in ("met", "invented", "missing"))
    note = f"<p>By {METRICS[metric].label}. Crops show where results differ most. Edges: {legend}.</p>"
    return note + "".join(cards) if cards else ""


def _card(name: str, title: str, versions: Sequence[Column], comparison: Comparison) -> str:
    window = zoom_window(versions)
    kept = [*versions[: 1 + GALLERY_RUNS], versions[-1]] if len(versions) > GALLERY_RUNS + 2 else versions
    pairs = zip(comparison.runs, comparison.chosen, strict=True)
    scores = {run.label: result.pictures[name] for run, result in pairs if name in result.pictures}
    whole = data_uri(overview(versions[-1], window), "JPEG")
    tiles = [f'<div><img class="whole" src="{whole}" alt="whole picture"></div>']
    for version in kept:
        score = scores.get(version.label)
        text = f"F1 {score['edge_f1']:.3f} · {score['psnr_y']:.2f} dB" if score else "&nbsp;"
        edges = data_uri(edge_picture(version, versions[-1], window), "PNG")
        crop = crop_uri(version, window)
        tiles.append(
            f'<div><b>{escape(version.label)}</b><span class="unit">{text}</span>'
            f'<img class="crop" src="{crop}" alt="crop"><img class="crop" src="{edges}" alt="edges"></div>'
        )
    head = f'<h3>{escape(name)} <span class="unit">{escape(title)}</span></h3>'
    return f'<article class="card">{head}<div class="tiles">{"".join(tiles)}</div></article>'


def _pictures(report: Report, comparison: Comparison) -> str:
    metrics = [metric for metric in ("psnr_y", "ssim_y", "edge_f1", "edge_psnr") if metric in report.metrics]
    order = _order(report)
    head = ["Picture", "Run", *(_heading(metric) for metric in metrics)]
    rows = []
    for name in report.pictures:
        for run, result in zip(comparison.runs, comparison.chosen, strict=True):
            values = result.pictures.get(name, {})
            cells = [_number(values.get(metric, math.nan), METRICS[metric].decimals) for metric in metrics]
            first = escape(name) if run is comparison.runs[0] else ""
            rows.append([first, _name(run.label, order[run.name]), *cells])
    more = "<p>All metrics of all checkpoints are in results.csv beside this page, means in checkpoints.csv.</p>"
    summary = f"<summary>{_count(len(report.pictures), 'picture')}</summary>"
    return f"{more}<details>{summary}{_table(head, rows, 'numbers')}</details>"


def _protocol(report: Report) -> str:
    settings = report.settings
    metrics = "".join(f"<dt>{_heading(name)}</dt><dd>{escape(METRICS[name].meaning)}</dd>" for name in report.metrics)
    runs = "".join(f"<dt>{escape(run.label)}</dt><dd>{escape(run.name)}, edge_loss_weight "
                   f"{weight_in_words(run.edge_loss_weight)}</dd>"
                   for run in report.runs)  # fmt: skip
    text = (f"Inputs: {escape(report.inputs)}. Noise is a function of seed {settings.seed} and the picture's name. "
            f"Results are rounded to 8 bits; {settings.border} pixels are cut off on every side. Canny edges are those "
            "of the edge loss (5 x 5 Gaussian of sigma 1.4, thresholds 100 and 200); an edge is met by one at most a "
            "pixel off. PSNRs of equal pictures count as 100 dB.")  # fmt: skip
    return f"<p>{text}</p><dl>{runs}{metrics}</dl>"
