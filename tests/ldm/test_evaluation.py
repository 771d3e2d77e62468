"""The parts of an evaluation: intervals, choices of checkpoints, degraded pictures, charts and crops."""

import math
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from basicsr.utils.errors import UserError
from ldm.config import load_config
from ldm.evaluation.charts import Series, colour, curves, in_words, interval_bar
from ldm.evaluation.comparison import compare_runs
from ldm.evaluation.gallery import INVENTED, MET, MISSING, Column, edge_picture, overview, zoom_window
from ldm.evaluation.pictures import made_pictures, read_tensor
from ldm.evaluation.records import Settings
from ldm.evaluation.runs import Run, read_checkpoint, select_checkpoints
from ldm.evaluation.statistics import Interval, bootstrap_mean, compare
from ldm.evaluation.summary import CheckpointResult, Report, RunResult, load_report, save_report

ROOT = Path(__file__).parents[2]
CONFIG = load_config([ROOT / "configs/demo/edge_cpu.yaml"])


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
    assert compare({"a": 1, "b": 10}, {"a": 2, "b": 11}, True).certain
    assert not compare({"a": 1, "b": 10}, {"a": 2, "b": 9}, True).certain
    assert not compare({"a": 1}, {"a": 2}, True).certain  # one picture proves nothing


def write_checkpoint(folder: Path, name: str, step: int, **more: object) -> None:
    state = {"a": torch.full((3,), float(step))}
    torch.save({"state_dict": state, "global_step": step, **more}, folder / f"{name}.ckpt")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    folder = tmp_path / "2026-01-31T12-00-00_mine" / "checkpoints"
    folder.mkdir(parents=True)
    for step in (10, 20, 30, 40):
        write_checkpoint(folder, f"step{step:06d}", step)
    monitor = {"monitor": "val/edge_f1", "best_model_path": "/elsewhere/step000020.ckpt"}
    write_checkpoint(folder, "last", 40, callbacks={"StepCheckpoint{}": monitor, "other": {"x": 1}})
    return Run(folder.parent, CONFIG)


def test_choices_of_checkpoints(run: Run) -> None:
    def names(which: str) -> list[str]:
        return [each.path.stem for each in select_checkpoints(run, which)[0]]

    assert names("all") == ["step000010", "step000020", "step000030", "step000040"]  # last.ckpt is step 40 again
    assert names("last") == ["step000040"]
    assert names("every:3") == ["step000010", "step000040"]
    assert run.label == "mine" and run.edge_loss_weight == 0.1
    with pytest.raises(UserError, match="monitors no metric"):  # step000040 has no callbacks
        names("best")
    (run.checkpoints / "step000040.ckpt").unlink()
    assert names("best") == ["step000020"]  # though the folder was moved
    (run.checkpoints / "step000020.ckpt").unlink()
    with pytest.raises(UserError, match="step000020.ckpt, the best by val/edge_f1, is gone"):
        names("best")


def test_identity_is_that_of_the_content(run: Run) -> None:
    file = run.checkpoints / "step000010.ckpt"
    before = read_checkpoint(file)
    copy = file.with_name("copy.ckpt")
    copy.write_bytes(file.read_bytes())
    assert read_checkpoint(copy).identity == before.identity
    torch.save({"state_dict": {"a": torch.ones(3)}, "global_step": 10}, file)
    assert read_checkpoint(file).identity != before.identity and read_checkpoint(file).step == 10
    torch.save({"a": torch.ones(3)}, file)
    with pytest.raises(UserError, match="is no checkpoint of a training run"):
        read_checkpoint(file)


def test_degraded_pictures_depend_on_seed_and_name_alone(tmp_path: Path) -> None:
    photo = Image.fromarray(skimage.data.chelsea())
    for folder, names in (("two", ("a", "b")), ("one", ("b",))):
        (tmp_path / folder).mkdir()
        for name in names:
            photo.crop((0, 0, 72, 48)).save(tmp_path / folder / f"{name}.png")
    made = {}
    for key, folder, seed in (("two", "two", 1), ("one", "one", 1), ("other seed", "one", 2)):
        pictures, left_out = made_pictures(str(tmp_path / folder), CONFIG, seed, tmp_path / f"lq {key}")
        made[key] = {picture.name: read_tensor(picture.lq) for picture in pictures}
        assert left_out == []
    assert made["two"]["a"].shape == (3, 48, 72)
    assert torch.equal(made["two"]["b"], made["one"]["b"])
    assert not torch.equal(made["two"]["a"], made["two"]["b"])  # one content, two names
    assert not torch.equal(made["one"]["b"], made["other seed"]["b"])
    gt = read_tensor(tmp_path / "one" / "b.png")
    assert 0.01 < (made["one"]["b"] - gt).abs().mean() < 0.2


def report(folder: Path, values: dict[str, dict[int, list[float]]]) -> Report:
    """Runs -> steps -> PSNRs of pictures; run names end with their weight."""
    runs = tuple(
        RunResult(name, name, float(name.split()[-1]), tuple(
            CheckpointResult(step, f"{step}.ckpt", {f"p{i}": {"psnr_y": value, "ms_ssim": math.nan}
                                                    for i, value in enumerate(each)}, {})
            for step, each in steps.items()
        )) for name, steps in values.items()
    )  # fmt: skip
    settings = Settings(steps=2, sampler="ddim", seed=1, sf=4, border=4, lpips=False)
    return Report(folder, settings, "", {"p0": {"gt": "", "lq": ""}}, runs, ("x",))


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


def test_charts_show_every_point() -> None:
    points = tuple((step, Interval(step / 10, step / 10 - 1, step / 10 + 1, 5)) for step in (10, 20, 30))
    chart = ElementTree.fromstring(curves([Series("a <b>", colour(0), points)], "step", 2))
    dots = list(chart.iter("circle"))
    assert [dot[0].text for dot in dots] == [
        f"a <b>, step {step}: {step / 10:.2f} ({step / 10 - 1:.2f} to {step / 10 + 1:.2f})" for step in (10, 20, 30)
    ]
    x, y = ([float(dot.attrib[key]) for dot in dots] for key in ("cx", "cy"))
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.2) and y[0] > y[1] > y[2]
    assert [text.text for text in chart.iter("text")][-4:-1] == ["10", "20", "30"]
    flat = Series("a", colour(1), ((0.1, Interval(3, 3, 3, 1)),))
    assert len(list(ElementTree.fromstring(curves([flat], "weight", 2)).iter("circle"))) == 1
    bar = ElementTree.fromstring(interval_bar(Interval(1, -1, 2, 5), 2, None))
    assert [bar[1].attrib[key] for key in ("x1", "x2")] == ["59.0", "212.0"]


def test_crops_show_where_results_differ() -> None:
    grey = torch.full((3, 200, 300), 0.5)
    other = grey.clone()
    other[:, 150:160, 40:50] = 1
    rows, columns = zoom_window([Column("lq", grey), Column("a", grey), Column("b", other), Column("true", grey)])
    assert rows.start <= 150 and rows.stop >= 160 and columns.start <= 40 and columns.stop >= 50
    assert rows.stop - rows.start == columns.stop - columns.start == 96
    rows, columns = zoom_window([Column("lq", grey), Column("a", other), Column("true", grey)])  # one run alone
    assert rows.start <= 150 and rows.stop >= 160
    assert zoom_window([Column("lq", grey[:, :50, :20])] * 3) == (slice(0, 50), slice(0, 20))
    assert overview(Column("true", grey), (rows, columns)).shape == (147, 220, 3)


def test_edges_are_coloured_by_truth() -> None:
    def bars(*places: int) -> Column:
        img = torch.zeros(3, 60, 120)
        for place in places:
            img[..., place : place + 8] = 1
        return Column("", img)

    picture = edge_picture(bars(20, 60), bars(20, 90), (slice(0, 60), slice(0, 120)))

    def there(colour: tuple[float, float, float], columns: slice) -> bool:
        return bool((np.abs(picture[:, columns] - np.array(colour)).max(-1) < 1e-6).any())

    assert there(MET, slice(15, 33)) and there(INVENTED, slice(55, 73)) and there(MISSING, slice(85, 103))
    assert not there(MISSING, slice(0, 80)) and not there(INVENTED, slice(0, 50))
