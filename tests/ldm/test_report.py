"""Reports: intervals, comparisons, charts, crops, and what a damaged or hostile file does to them."""

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from basicsr.metrics.edge_metrics import edge_map
from basicsr.metrics.table import METRICS
from basicsr.utils.errors import UserError
from ldm.evaluation.report.charts import Bar, Plot, Series, colour, curves, in_words, interval_bar
from ldm.evaluation.report.comparison import compare_runs
from ldm.evaluation.report.gallery import INVENTED, MET, MISSING, Version, edge_picture, edges, overview, zoom_window
from ldm.evaluation.report.page import templates, write_page
from ldm.evaluation.report.statistics import Interval, bootstrap_mean, compare, student_half_width
from ldm.evaluation.report.summary import CheckpointResult, Report, RunResult, Settings, load_report, save_report

ROOT = Path(__file__).parents[2]


def test_intervals_agree_with_the_normal_approximation() -> None:
    values = np.random.default_rng(1).normal(30, 2, 400)
    interval = bootstrap_mean(list(values))
    half = 1.96 * values.std() / 20
    assert interval.mean == pytest.approx(values.mean()) and interval.pictures == 400
    assert interval.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.1 * half)
    assert bootstrap_mean(list(values)) == interval


def test_intervals_of_few_values() -> None:
    assert bootstrap_mean([2.0, math.nan]) == (2, 2, 2, 1)
    assert bootstrap_mean([math.nan]).pictures == 0 and math.isnan(bootstrap_mean([]).mean)
    assert in_words(bootstrap_mean([0.0004]), 2, "+") == "+0.00040"  # not +0.00
    assert in_words(bootstrap_mean([]), 2) == "–" and in_words(bootstrap_mean([2.0]), 1) == "2.0"


def test_differences_are_paired() -> None:
    first = {"a": 1.0, "b": 10.0, "c": 5.0, "d": math.nan, "only first": 3.0}
    second = {"a": 2.0, "b": 11.5, "c": 5.0, "d": 4.0}
    paired = compare(first, second, higher_is_better=True)
    assert paired.difference.mean == pytest.approx(2.5 / 3) and paired.difference.pictures == 3
    assert (paired.wins, paired.losses, paired.ties) == (2, 0, 1)
    worse = compare(first, second, higher_is_better=False)
    assert (worse.wins, worse.losses, worse.ties) == (0, 2, 1)
    # Pictures differ by 9, the runs by 1 on each: only pairing shows it.
    assert compare({"a": 1, "b": 10}, {"a": 2, "b": 11}, higher_is_better=True).better is True
    assert compare({"a": 1, "b": 10}, {"a": 2, "b": 11}, higher_is_better=False).better is False
    assert compare({"a": 1, "b": 10}, {"a": 2, "b": 9}, higher_is_better=True).better is None
    assert compare({"a": 1}, {"a": 2}, higher_is_better=True).better is None  # one picture proves nothing


@pytest.mark.parametrize(
    ("second", "score", "verdict"),
    [
        ({"a": 1.0, "b": 2.0}, "equal", "equal"),
        ({"a": 2.0, "b": 2.0}, "won 1 of 2, 1 equal", "not clear"),
        ({"a": 0.0, "b": 1.0}, "won 0 of 2", "worse"),
        ({"c": 1.0}, "nothing in common", "nothing in common"),
    ],
)
def test_what_is_said_of_a_comparison(second: dict[str, float], score: str, verdict: str) -> None:
    paired = compare({"a": 1.0, "b": 2.0}, second, higher_is_better=True)
    assert (paired.score, paired.verdict) == (score, verdict)


def test_intervals_over_seeds_are_students() -> None:
    # The textbook's 97.5 % quantiles of t with 1, 4 and 30 degrees of freedom.
    for count, quantile in ((2, 12.706), (5, 2.776), (31, 2.042)):
        values = np.random.default_rng(count).normal(size=count)
        half = quantile * values.std(ddof=1) / math.sqrt(count)
        assert student_half_width(list(values)) == pytest.approx(half, rel=5e-4)


def report(folder: Path, values: dict[str, dict[int, list[float]]]) -> Report:
    """Runs -> steps -> PSNRs of pictures; run names end with their weight."""
    runs = tuple(
        RunResult(name, name, float(name.split()[-1]), tuple(
            CheckpointResult(step, f"{step}.ckpt", {f"p{i}": {"psnr_y": value, "ms_ssim": math.nan}
                                                    for i, value in enumerate(each)}, {})
            for step, each in steps.items()
        )) for name, steps in values.items()
    )  # fmt: skip
    settings = Settings(steps=2, sampler="ddim", seed=1, sf=4, border=4, lpips="")
    return Report(folder, settings, "", {f"p{i}": {"gt": "", "lq": ""} for i in range(2)}, runs, ("x",))


def test_what_is_compared(tmp_path: Path) -> None:
    two = report(tmp_path, {"b 0.1": {1: [20, 22], 2: [21, 25], 3: [20, 20]}, "a 0": {1: [23, 24], 2: [22, 22]}})
    comparison = compare_runs(two)
    assert [run.name for run in comparison.runs] == ["a 0", "b 0.1"]  # the smallest weight is the baseline
    assert [each.step for each in comparison.chosen] == [2, 2] and comparison.how.startswith("step 2, the newest that")
    assert comparison.paired(comparison.chosen[1], "psnr_y").difference.mean == 1
    best = compare_runs(two, baseline="b 0.1", at="psnr_y")
    assert [run.name for run in best.runs] == ["b 0.1", "a 0"] and [each.step for each in best.chosen] == [2, 1]
    assert two.metrics == ["psnr_y"]  # MS-SSIM is defined nowhere
    apart = report(tmp_path, {"a 0": {1: [1]}, "b 0": {2: [1]}})
    assert [each.step for each in compare_runs(apart).chosen] == [1, 2]


def test_a_report_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = report(tmp_path, {"a 0": {1: [23.25, math.nan]}})
    save_report(written)
    read = load_report(tmp_path)
    assert str(read) == str(written)  # NaN equals itself in words alone


def draw(what: Plot | Bar) -> ElementTree.Element:
    macros = templates([]).get_template("charts.html").module
    return ElementTree.fromstring(getattr(macros, "curves" if isinstance(what, Plot) else "interval")(what))


def test_charts_show_every_point() -> None:
    points = tuple((step, Interval(step / 10, step / 10 - 1, step / 10 + 1, 5)) for step in (10, 20, 30))
    level = Series("else", colour(1), ((None, Interval(2.5, 2, 3, 5)),))
    chart = draw(curves([Series("a <b>", colour(0), points), level], "step", 2))
    dots = list(chart.iter("circle"))
    assert [dot[0].text for dot in dots] == [
        f"a <b>, step {step}: {step / 10:.2f} ({step / 10 - 1:.2f} to {step / 10 + 1:.2f})" for step in (10, 20, 30)
    ]
    x, y = ([float(dot.attrib[key]) for dot in dots] for key in ("cx", "cy"))
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.2) and y[0] > y[1] > y[2]
    assert [text.text for text in chart.iter("text")][-4:-1] == ["10", "20", "30"]
    (line,) = (line for line in chart.iter("line") if line.attrib.get("stroke-dasharray"))
    assert line[0].text == "else: 2.50 (2.00 to 3.00)"
    assert float(line.attrib["y1"]) == pytest.approx((y[1] + y[2]) / 2, abs=0.2)
    flat = Series("a", colour(1), ((0.1, Interval(3, 3, 3, 1)),))
    assert len(list(draw(curves([flat], "weight", 2)).iter("circle"))) == 1
    bar = draw(interval_bar(Interval(1, -1, 2, 5), 2, better=None))
    assert [bar[1].attrib[key] for key in ("x1", "x2")] == ["59.0", "212.0"]


def grey(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 128, np.uint8)


def test_crops_show_where_results_differ() -> None:
    other = grey(200, 300)
    other[150:160, 40:50] = 255
    lq, true = Version("lq", grey(200, 300)), Version("true", grey(200, 300))
    same, changed = Version("a", grey(200, 300), {}), Version("b", other, {})
    rows, columns = zoom_window([lq, same, changed, true])
    assert rows.start <= 150 and rows.stop >= 160 and columns.start <= 40 and columns.stop >= 50
    assert rows.stop - rows.start == columns.stop - columns.start == 96
    rows, columns = zoom_window([lq, changed, true])  # one run alone
    assert rows.start <= 150 and rows.stop >= 160
    small = grey(50, 20)
    assert zoom_window([Version("lq", small), Version("a", small, {}), Version("true", small)]) == (
        slice(0, 50),
        slice(0, 20),
    )
    assert overview(true, (rows, columns)).shape == (147, 220, 3)


def test_edges_are_those_that_are_measured() -> None:
    photo = skimage.data.astronaut()[:160, 100:300]
    wanted = edge_map(torch.from_numpy(photo).permute(2, 0, 1) / 255)
    assert wanted.any() and np.array_equal(edges(photo), wanted)


def test_edges_are_coloured_by_truth() -> None:
    def bars(*places: int) -> Version:
        img = np.zeros((60, 120, 3), np.uint8)
        for place in places:
            img[:, place : place + 8] = 255
        return Version("", img)

    picture = edge_picture(bars(20, 60), bars(20, 90), (slice(0, 60), slice(0, 120)))

    def there(colour: tuple[int, int, int], columns: slice) -> bool:
        return bool((picture[:, columns] == np.array(colour)).all(-1).any())

    assert there(MET, slice(15, 33)) and there(INVENTED, slice(55, 73)) and there(MISSING, slice(85, 103))
    assert not there(MISSING, slice(0, 80)) and not there(INVENTED, slice(0, 50))


HOSTILE = (
    """</title></script><script>alert(1)</script><img src=x onerror=alert(2)>" onload="alert(3)' {{ 7 * 7 }} &amp;"""
)


class Tags(HTMLParser):
    """The tags of a page with their attributes' names, and the text between them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


def page_with_names(folder: Path, text: str) -> str:
    """A page of a report in which everything that may come from a file is called `text`."""
    folder.mkdir()
    for file in ("gt.png", "a.png", "b.png"):
        Image.fromarray(skimage.data.astronaut()[:60, 100:180]).save(folder / file)
    metrics = dict.fromkeys(METRICS, 1.0)
    runs = tuple(
        RunResult(
            f"{name}{text}",
            f"{name}{text}",
            weight,
            tuple(CheckpointResult(step, text, {text: metrics}, {text: f"{name}.png"}) for step in steps),
        )
        for name, weight, steps in (("a", f"auto:{text}", (1, 2)), ("b", 0.1, (2,)), ("c", 0.2, (2,)))
    )
    other = RunResult("d", "d", None, (CheckpointResult(None, text, {text: metrics}, {text: "b.png"}),))
    settings = Settings(steps=2, sampler="ddim", seed=1, sf=4, border=4, lpips="alex")
    pictures = {text: {"gt": str(folder / "gt.png")}, f"{text} gone": {"gt": text}}
    for name in "abc":
        Image.new("RGB", (80, 60), name and (90, 40, 10)).save(folder / f"{name}.png")
    written = Report(folder, settings, text, pictures, (*runs, other), (text,))
    save_report(written)
    return write_page(load_report(folder)).read_text()


def test_texts_from_files_are_escaped(tmp_path: Path) -> None:
    hostile, plain = (Tags(page_with_names(tmp_path / name, text)) for name, text in (("x", HOSTILE), ("y", "tame")))
    assert hostile.tags == plain.tags and hostile.attributes == plain.attributes
    assert plain.text.count("tame") == hostile.text.count(HOSTILE) + hostile.text.count("\\u003c/title\\u003e")
    assert hostile.text.count(HOSTILE) > 10


@pytest.mark.parametrize(
    "content",
    [
        b"{}",
        b"[]",
        b"{",
        b"\xff\xfe\x00",
        b"null",
        b"7",
        b'{"runs": []}',
        b'{"runs": {}, "pictures": [], "settings": [], "inputs": 1, "left_out": 2}',
    ],
)
def test_a_damaged_report_gets_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "report.json").write_bytes(content)
    with pytest.raises(UserError, match="report.json is damaged: make it again with evaluate --out"):
        load_report(tmp_path)


def test_a_report_that_is_damaged_anywhere_gets_one_line(tmp_path: Path) -> None:
    save_report(report(tmp_path, {"a 0": {1: [23.25]}, "b 0.1": {1: [23.5]}}))
    content = json.loads((tmp_path / "report.json").read_text())
    refused = 0
    for path in list(places(content)):
        for value in ({}, "x"):
            spoilt = json.loads(json.dumps(content))
            *above, last = path
            node = spoilt
            for key in above:
                node = node[key]
            node[last] = value
            (tmp_path / "report.json").write_text(json.dumps(spoilt))
            try:
                write_page(load_report(tmp_path))
            except UserError as error:
                refused += "is damaged" in str(error)
    assert refused > 20


def places(node: Any) -> Iterator[list[Any]]:
    """The path of every value in a JSON document."""
    inside: list[tuple[Any, Any]] = []
    if isinstance(node, dict | list):
        inside = list(node.items() if isinstance(node, dict) else enumerate(node))
    for key, value in inside:
        yield [key]
        yield from ([key, *path] for path in places(value))


def test_reporting_loads_neither_torch_nor_lightning() -> None:
    rooms = [f"ldm.evaluation.report.{file.stem}" for file in (ROOT / "ldm/evaluation/report").glob("*.py")]
    code = f"import sys, {', '.join(rooms)}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    modules = done.stdout.split()
    assert not [name for name in modules if name.startswith(("ldm.evaluation.measure", "ldm.inference", "ldm.models"))]
    loaded = {name.partition(".")[0] for name in modules}
    assert "jinja2" in loaded and not loaded & {"torch", "pytorch_lightning", "lightning", "lightning_fabric", "scipy"}


@pytest.mark.parametrize("script", ["compare_runs", "evaluate"])
def test_help_comes_without_torch(script: str) -> None:
    code = f"import sys; sys.modules['torch'] = None; from scripts.{script} import main; main(['--help'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "usage:" in done.stdout, done.stderr
