"""Evaluation as its users meet it: two runs that are really trained, then measured, compared, broken off, watched."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
import skimage.data
import torch
from PIL import Image
from tiny_run import ROOT, write_tiny_run

from basicsr.metrics.lpips import LPIPS
from basicsr.metrics.measure import measure
from basicsr.metrics.table import METRICS
from basicsr.utils.img_util import read_rgb
from ldm.evaluation.measure.cli import main as evaluate
from ldm.evaluation.measure.evaluate import Evaluation, EvaluationOptions
from ldm.evaluation.measure.pictures import read_tensor
from ldm.evaluation.report.cli import main as compare_runs
from main import main as train

RUNS = ("plain", "edge")
FEW_STEPS = ["--steps", "2", "--sampler", "ddim"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs/plain and runs/edge, of two checkpoints each, and three true pictures in data/."""
    folder = tmp_path_factory.mktemp("trained")
    write_tiny_run(folder)
    (folder / "data").mkdir()
    photo = Image.fromarray(skimage.data.coffee())
    for index, size in enumerate([(40, 40), (38, 41), (56, 48)]):  # the second fits no network as it is
        photo.crop((90 * index, 60, 90 * index + size[0], 60 + size[1])).save(folder / "data" / f"cup{index}.png")
    before = Path.cwd()
    os.chdir(folder)
    every_step = "lightning.modelcheckpoint.params={every_n_train_steps: 1, save_top_k: -1}"
    common = ["--base", "tiny.yaml", "--logger", "csv", "--limit_val_batches", "0"]
    common += ["lightning.callbacks=null", every_step]
    for name, weight in (("plain", 0), ("edge", 0.1)):
        assert train([*common, f"model.params.edge_loss_weight={weight}", "-l", "runs", "-n", name]) == 0
    os.chdir(before)
    for run in list((folder / "runs").iterdir()):
        run.rename(run.with_name(run.name.split("_")[-1]))
    return folder


@pytest.fixture
def here(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it as the working directory; its files are links, to be replaced and not written into."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True, copy_function=os.link)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def words(*more: str, out: str = "report", runs: tuple[str, ...] = RUNS) -> list[str]:
    given = [word for run in runs for word in ("--run", f"runs/{run}")]
    return [*given, "--data", "data", "--out", out, *FEW_STEPS, *more]


def rows(file: str) -> list[dict[str, str]]:
    with Path(file).open(newline="") as text:
        return list(csv.DictReader(text))


def restored(kind: str = "png") -> dict[Path, int]:
    """The restored pictures, or their numbers, and when they were written."""
    return {path: path.stat().st_mtime_ns for path in Path("report/restored").rglob(f"*.{kind}")}


def test_a_run_whose_weight_the_gradients_decide(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (config,) = (here / "runs/edge/configs").glob("*-config.yaml")
    text = config.read_text()
    config.unlink()  # it may be a link to what other tests share
    config.write_text(text.replace("edge_loss_weight: 0.1", "edge_loss_weight: auto:0.2"))
    assert evaluate(words("--checkpoints", "last")) == 0
    assert {row["edge_loss_weight"] for row in rows("report/results.csv")} == {"0.0", "auto:0.2"}
    assert compare_runs(["report"]) == 0
    assert "edge (edge_loss_weight auto:0.2, step 2)" in capsys.readouterr().out
    assert "weight auto:0.2" in Path("report/report.html").read_text()


def test_a_picture_that_is_too_small_is_left_out_by_name(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (5, 5)).save("data/a.png")
    assert evaluate(words("--checkpoints", "last")) == 0
    assert "left out: data/a.png: it is 5 x 5 pixels: each side must be 8 or more" in capsys.readouterr().err
    assert len(rows("report/results.csv")) == 6


class Page(HTMLParser):
    """Collects what a page refers to, and the ids in it."""

    def __init__(self, file: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.ids: set[str] = set()
        self.text = Path(file).read_text()
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        self.ids |= {value or "" for name, value in attrs if name == "id"}


def test_two_commands_and_a_page(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(words()) == 0
    assert "12 results: report/report.html" in capsys.readouterr().out
    results = rows("report/results.csv")
    assert {(row["run"], row["step"], row["picture"]) for row in results} == {
        (run, step, f"cup{index}") for run in ("plain", "edge") for step in "12" for index in range(3)
    }
    assert {row["edge_loss_weight"] for row in results if row["run"] == "edge"} == {"0.1"}
    assert all(row["ms_ssim"] == "" and row["ssim_y"] for row in results)  # too small for five scales
    check_against_the_pictures(results)
    check_the_page()
    assert compare_runs(["report"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^  Edge F1 +\d\.\d{4} .*[+−]\d\.\d{4} .*(won \d of 3.*|equal)$", out, re.M)
    assert "at step 2" in out
    assert "MS-SSIM Y: not defined for any of these pictures" in out
    compared = rows("report/comparison.csv")
    assert [row["metric"] for row in compared] == [name for name in METRICS if name not in ("lpips", "ms_ssim")]
    last = {run: [float(row["psnr_y"]) for row in results if (row["run"], row["step"]) == (run, "2")] for run in RUNS}
    differences = [edge - plain for plain, edge in zip(last["plain"], last["edge"], strict=True)]
    assert float(compared[0]["mean"]) == pytest.approx(sum(differences) / 3)
    assert int(compared[0]["wins"]) == sum(difference > 0 for difference in differences)
    assert compare_runs(["report", "--baseline", "edge", "--at", "psnr_y"]) == 0
    assert {row["baseline"] for row in rows("report/comparison.csv")} == {"edge"}


def check_against_the_pictures(results: list[dict[str, str]]) -> None:
    """The CSV's numbers are those of the restored files."""
    content = json.loads(Path("report/report.json").read_text())
    (run,) = (run for run in content["runs"] if run["name"] == "edge")
    for name, file in run["checkpoints"][1]["restored"].items():
        gt = Path("data", f"{name}.png")
        assert read_rgb(Path("report", file)).shape == read_rgb(gt).shape
        expected = measure(read_tensor(Path("report", file)), read_tensor(gt), border=4)
        (row,) = (row for row in results if (row["run"], row["step"], row["picture"]) == ("edge", "2", name))
        for metric, value in expected.items():
            assert row[metric] == ("" if value != value else str(value)), metric


def check_the_page() -> None:
    page = Page("report/report.html")
    assert all(reference.startswith(("data:image/", "#")) for reference in page.references)
    assert not re.search(r"https?://|@import|url\(", page.text)
    links = {reference[1:] for reference in page.references if reference.startswith("#")}
    assert links <= page.ids and len(links) == 9
    assert page.text.count("<svg") == 3 * 11 and "{{" not in page.text
    assert "MS-SSIM Y: not defined for any of these pictures (SSIM over five scales" in page.text
    slider = json.loads(re.search(r'id="slider-data">(.*?)</script>', page.text)[1])  # type: ignore[index]
    assert list(slider) == ["cup0", "cup1", "cup2"]
    assert list(slider["cup0"]) == ["degraded", "plain", "edge", "true"]


def test_killed_half_way_and_started_again(here: Path) -> None:
    few = ["--checkpoints", "last", "--steps", "8"]
    command = [sys.executable, str(ROOT / "scripts/evaluate.py"), *words(*few)]
    process = subprocess.Popen(
        command, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    )
    while len(restored(kind="json")) < 2:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not Path("report/report.html").exists()
    kept = restored(kind="json")
    assert 2 <= len(kept) < 6
    assert evaluate(words(*few)) == 0
    assert kept.items() <= restored(kind="json").items() and len(restored(kind="json")) == 6
    assert evaluate(words(*few, out="straight")) == 0
    for file in ("results.csv", "checkpoints.csv", "comparison.csv"):
        assert Path("report", file).read_bytes() == Path("straight", file).read_bytes()


def test_only_what_is_missing_is_computed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def again(*more: str) -> int:
        """Evaluate; how many results were computed."""
        assert evaluate(words("--checkpoints", "last", *more)) == 0
        return int(re.search(r"6 results, (\d) of them to compute", capsys.readouterr().err)[1])  # type: ignore[index]

    assert again() == 6 and again() == 0
    first, before = restored(), rows("report/results.csv")
    assert again("--border", "0") == 6
    assert restored() == first and rows("report/results.csv") != before  # measured alone
    Path("runs/plain/checkpoints/step000002.ckpt").replace("runs/edge/checkpoints/step000002.ckpt")
    shutil.copy("runs/edge/checkpoints/step000002.ckpt", "runs/plain/checkpoints/step000002.ckpt")
    assert again("--border", "0") == 3  # other content under a known name
    assert len(restored()) == 9 and first.items() <= restored().items()


def test_several_processes_give_the_same(here: Path) -> None:
    assert evaluate(words("--checkpoints", "last", out="one")) == 0
    assert evaluate(words("--checkpoints", "last", "--devices", "2", out="two")) == 0
    for file in ("results.csv", "checkpoints.csv"):
        assert Path("one", file).read_bytes() == Path("two", file).read_bytes()


def test_watching_a_run_that_writes_checkpoints(here: Path) -> None:
    folder = Path("runs/edge/checkpoints")
    content = {path.name: path.read_bytes() for path in folder.iterdir()}
    for path in folder.iterdir():
        path.unlink()
    (folder / "step000001.ckpt").write_bytes(content["step000001.ckpt"])
    (folder / "step000002.ckpt").write_bytes(content["step000002.ckpt"][:20000])  # half written
    options = EvaluationOptions("data", Path("report"), ["runs/edge"], steps=2, sampler="ddim")
    reports = Evaluation(options).watch(pause=0.01)
    assert [each.step for each in next(reports).runs[0].checkpoints] == [1]
    (folder / "step000002.ckpt").write_bytes(content["step000002.ckpt"])
    assert [each.step for each in next(reports).runs[0].checkpoints] == [1, 2]
    assert list(reports) == []  # step 2 is the run's last
    assert {row["step"] for row in rows("report/results.csv")} == {"1", "2"}


def test_given_degraded_pictures(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("lq").mkdir()
    for index in range(3):
        gt = Image.open(f"data/cup{index}.png")
        gt.resize((gt.width // 4, gt.height // 4), Image.Resampling.BICUBIC).save(f"lq/cup{index}.jpg")
    assert evaluate(words("--lq", "lq", "--checkpoints", "every:2", runs=("edge",))) == 0
    sizes = {path.name[:4]: Image.open(path).size for path in restored()}
    assert sizes == {"cup0": (40, 40), "cup1": (36, 40), "cup2": (56, 48)}  # whole multiples of the reduced sizes
    assert {row["step"] for row in rows("report/results.csv")} == {"2"}
    Image.open("lq/cup2.jpg").crop((0, 0, 20, 20)).save("lq/cup2.jpg")
    capsys.readouterr()
    assert evaluate(words("--lq", "lq")) == 2
    assert "lq/cup2.jpg is 20x20 pixels, but data/cup2.png is 56x48" in capsys.readouterr().err
    Path("lq/cup1.jpg").unlink()
    assert evaluate(words("--lq", "lq")) == 2
    assert "--lq lq: 1 of 3 pictures have no partner there, the first is 'cup1'" in capsys.readouterr().err


def test_what_cannot_be_used_is_left_out_and_said(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("data/spoilt.png").write_bytes(Path("data/cup0.png").read_bytes()[:500])
    Image.new("RGB", (40, 40), "teal").save("data/flat.png")  # no edge, and that is no error
    Path("runs/plain/checkpoints/step000003.ckpt").write_bytes(b"half")
    assert evaluate(words("--checkpoints", "last")) == 0
    said = capsys.readouterr().err
    for part in ("spoilt.png: cannot be read as a picture", "step000003.ckpt cannot be read as a checkpoint"):
        assert part in said and part in Page("report/report.html").text
    flat = [row for row in rows("report/results.csv") if row["picture"] == "flat"]
    assert len(flat) == 2 and all(row["edge_f1"] in ("0.0", "1.0") and row["rmse_edges"] == "" for row in flat)
    assert {row["picture"] for row in rows("report/results.csv")} == {"cup0", "cup1", "cup2", "flat"}


def empty(path: str) -> Callable[[], None]:
    def act() -> None:
        shutil.rmtree(path)
        Path(path).mkdir()

    return act


def nothing() -> None:
    pass


@pytest.mark.parametrize(
    ("spoil", "more", "line"),
    [
        (nothing, ["--run", "runs/none"], "--run runs/none: there is no such folder; give a run's"),
        (nothing, ["--run", "data"], "data/configs holds no config, so this is no run's folder"),
        (nothing, ["--run", "runs/edge"], "another run is called edge too; rename one of the folders"),
        (empty("runs/edge/checkpoints"), [], "--run edge has no checkpoint in"),
        (nothing, ["--checkpoints", "every:0"], "--checkpoints is 'every:0': give all, last, best or every:N"),
        (nothing, ["--checkpoints", "best"], "--checkpoints best: plain monitors no metric while training; set"),
        (nothing, ["--data", "gone"], "--data is gone, which does not exist"),
        (empty("data"), [], "--data data: there is no picture in it"),
        (nothing, ["--lq", "gone"], "--lq is gone, which does not exist"),
        (nothing, ["--out", "data"], "--out data holds other files: name a folder that is new"),
        (nothing, ["--out", "tiny.yaml"], "--out tiny.yaml is a file"),
        (nothing, ["--devices", "0"], "--devices is 0: give 1"),
        (nothing, ["--steps", "0"], "--steps is 0: give a number of 1 or more"),
        (nothing, ["--border", "-1"], "--border is -1: give a number of 0 or more"),
        (nothing, ["--border", "40"], "--border is 40, which leaves too little of data/cup"),
        (nothing, ["--out", "/proc/none"], "--out /proc/none cannot be written"),
        (nothing, ["--pause", "-1"], "--pause is -1"),
        (nothing, ["--sampler", "euler"], "argument --sampler: invalid choice: 'euler'"),
        (lambda: shutil.copy("data/cup0.png", "data/cup0.bmp"), [], "have one name; rename one of them"),
    ],
)
def test_mistakes_get_one_line(
    here: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[], None], more: list[str], line: str
) -> None:
    spoil()
    assert evaluate(words(*more)) == 2
    *_, error = said = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ") and line in error and "Traceback" not in str(said)
    assert not Path("report/restored").exists()


def test_lpips_that_is_not_there_stops_before_anything_is_computed(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(here))
    assert evaluate(words("--lpips", "alex")) == 2
    *_, error = capsys.readouterr().err.splitlines()
    assert error.startswith("error: --lpips_weights are not there: put alexnet-owt-7be5be79.pth, AlexNet's ImageNet")
    assert not Path("report/restored").exists()


def test_lpips_on_a_network_whose_weights_are_given(here: Path) -> None:
    for net in ("alex", "squeeze"):
        torch.save(LPIPS(net, random_seed=0).features.state_dict(), f"{net}.pth")
    few = ("--checkpoints", "last", "--border", "0")
    assert evaluate(words(*few)) == 0
    before = restored()
    means = {}
    for net in ("alex", "squeeze"):
        assert evaluate(words(*few, "--lpips", net, "--lpips_weights", f"{net}.pth")) == 0
        settings = json.loads(Path("report/report.json").read_text())["settings"]
        assert (settings["lpips"], settings["lpips_weights"]) == (net, f"{net}.pth")
        means[net] = [float(row["lpips"]) for row in rows("report/results.csv")]
        assert f"LPIPS on {net}" in Path("report/report.html").read_text()
    assert restored() == before  # nothing is sampled twice
    assert len(means["alex"]) > 1 and min(means["alex"]) > 0
    assert means["alex"] != means["squeeze"]  # numbers of one network are not taken for another's


def test_mistakes_in_comparing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare_runs(["none"]) == 2
    assert "none/report.json is not there: make it with evaluate --out none" in capsys.readouterr().err
    assert evaluate(words("--checkpoints", "last")) == 0
    capsys.readouterr()
    assert compare_runs(["report", "--baseline", "plane"]) == 2
    assert "--baseline 'plane' is not known; did you mean 'plain'?" in capsys.readouterr().err
    assert compare_runs(["report", "--at", "edge_f2"]) == 2
    assert "--at 'edge_f2' is not known; did you mean 'edge_f1'?" in capsys.readouterr().err
    Path("report/report.json").write_text("{")
    assert compare_runs(["report"]) == 2
    assert "report.json is damaged: make it again with" in capsys.readouterr().err
