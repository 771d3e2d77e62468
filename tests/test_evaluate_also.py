"""Evaluation beside and without runs: folders of restored pictures as arms, and what becomes of damaged files."""

import csv
import errno
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from tiny_run import ROOT, write_tiny_model

from basicsr.metrics.measure import measure
from ldm.evaluation.measure.cli import main as evaluate
from ldm.evaluation.measure.pictures import read_tensor
from ldm.evaluation.report.cli import main as compare_runs

Output = pytest.CaptureFixture[str]
ALSO = ["--also", "bicubic,results/sharp", "--data", "data", "--lq", "lq", "--out", "report"]
RUN = ["--run", "runs/mine", "--data", "data", "--out", "report", "--steps", "1", "--sampler", "ddim"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """True pictures in data/, small ones in lq/, and results/sharp, which has two of the three."""
    photo = Image.fromarray(skimage.data.coffee())
    for folder in ("data", "lq", "results/sharp"):
        (tmp_path / folder).mkdir(parents=True)
    for index, size in enumerate([(40, 40), (38, 41), (56, 48)]):
        gt = photo.crop((90 * index, 60, 90 * index + size[0], 60 + size[1]))
        gt.save(tmp_path / "data" / f"cup{index}.png")
        small = gt.resize((gt.width // 4, gt.height // 4), Image.Resampling.BICUBIC)
        small.save(tmp_path / "lq" / f"cup{index}.png")
        if index:
            noisy = np.asarray(gt).astype(int) + np.random.default_rng(index).integers(-9, 10, (*gt.size[::-1], 3))
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(tmp_path / "results/sharp" / f"cup{index}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run_too(here: Path) -> Path:
    """runs/mine, a run with one checkpoint."""
    write_tiny_model(here)
    for folder in ("checkpoints", "configs"):
        (here / "runs/mine" / folder).mkdir(parents=True)
    state = torch.load(here / "model.ckpt")
    torch.save({**state, "global_step": 7}, here / "runs/mine/checkpoints/last.ckpt")
    (here / "tiny.yaml").replace(here / "runs/mine/configs/2026-01-31T12-00-00-config.yaml")
    return here


def rows(file: str) -> list[dict[str, str]]:
    with Path(file).open(newline="") as text:
        return list(csv.DictReader(text))


def slider() -> dict[str, dict[str, str]]:
    page = Path("report/report.html").read_text()
    found: dict[str, dict[str, str]] = json.loads(re.search(r'id="slider-data">(.*?)</script>', page)[1])  # type: ignore[index]  # None fails, as it should
    return found


def test_arms_without_any_run(here: Path, capsys: Output) -> None:
    assert evaluate(ALSO) == 0
    said = capsys.readouterr()
    assert "left out: results/sharp has no picture for 1 of 3: cup0" in said.err
    assert "5 results: report/report.html" in said.out
    results = rows("report/results.csv")
    assert [(row["run"], row["step"], row["edge_loss_weight"], row["picture"]) for row in results] == [
        *(("bicubic", "", "", f"cup{index}") for index in range(3)),
        *(("results/sharp", "", "", f"cup{index}") for index in (1, 2)),
    ]
    gt, sharp = (read_tensor(Path(folder, "cup1.png"))[:, :40, :36] for folder in ("data", "results/sharp"))
    assert float(results[3]["psnr_y"]) == measure(sharp, gt, border=4)["psnr_y"]  # where four divides the sides
    enlarged = read_tensor(Path("lq/cup0.png"))[None]
    enlarged = torch.nn.functional.interpolate(enlarged, scale_factor=4, mode="bicubic")[0]
    assert float(results[0]["psnr_y"]) == measure(enlarged, read_tensor(Path("data/cup0.png")), border=4)["psnr_y"]
    assert compare_runs(["report"]) == 0
    out = capsys.readouterr().out
    assert "sharp (pictures from results/sharp)" in out and re.search(r"PSNR Y .* won 2 of 2$", out, re.M)
    assert {row["baseline"] for row in rows("report/comparison.csv")} == {"bicubic"}
    assert [list(each) for each in slider().values()] == [
        ["degraded", "bicubic", "true"],
        ["degraded", "bicubic", "sharp", "true"],
        ["degraded", "bicubic", "sharp", "true"],
    ]
    page = Path("report/report.html").read_text()
    assert "of 2 pictures" in page and "has no picture for 1 of 3: cup0" in page


def test_results_and_truth_suffice(here: Path) -> None:
    assert evaluate(["--also", "results/sharp", "--data", "data", "--out", "report"]) == 0
    assert [row["picture"] for row in rows("report/results.csv")] == ["cup1", "cup2"]
    assert [list(each) for each in slider().values()] == [["sharp", "true"]] * 2
    gt, sharp = (read_tensor(Path(folder, "cup1.png")) for folder in ("data", "results/sharp"))
    assert float(rows("report/results.csv")[0]["psnr_y"]) == measure(sharp, gt, border=4)["psnr_y"]


def test_results_may_be_called_as_the_upscaler_calls_them(here: Path) -> None:
    Image.open("lq/cup1.png").save("lq/cup1.jpg")
    Path("lq/cup1.png").unlink()
    Path("results/sharp/cup1.png").rename("results/sharp/cup1.jpg.png")
    assert evaluate(["--also", "results/sharp", "--data", "data", "--lq", "lq", "--out", "report"]) == 0
    assert [row["picture"] for row in rows("report/results.csv")] == ["cup1", "cup2"]


def test_arms_beside_a_run(run_too: Path, capsys: Output) -> None:
    assert evaluate([*RUN, "--also", "bicubic", "--also", "results/sharp"]) == 0
    assert {(row["run"], row["step"]) for row in rows("report/results.csv")} == {
        ("mine", "7"),
        ("bicubic", ""),
        ("results/sharp", ""),
    }
    made = next(Path("report/lq").glob("cup0-*.png"))
    bicubic = next(Path("report/restored/bicubic").glob("cup0-*.png"))
    assert torch.equal(read_tensor(made), read_tensor(bicubic))  # it has the true one's size already
    assert {row["baseline"] for row in rows("report/comparison.csv")} == {"mine"}
    assert "1 run · 1 checkpoint · 2 other arms · 3 pictures · 1 DDIM steps" in Path("report/report.html").read_text()
    capsys.readouterr()
    assert evaluate([*RUN, "--also", "bicubic", "--also", "results/sharp"]) == 0
    assert "8 results, 0 of them to compute" in capsys.readouterr().err
    Image.new("RGB", (56, 48)).save("results/sharp/cup2.png")  # another result under a known name
    assert evaluate([*RUN, "--also", "bicubic,results/sharp"]) == 0
    assert "8 results, 1 of them to compute" in capsys.readouterr().err


def test_results_of_another_size_are_left_out(here: Path, capsys: Output) -> None:
    Image.open("data/cup2.png").resize((28, 24)).save("results/sharp/cup2.png")
    assert evaluate(ALSO) == 0
    line = (
        "cup2.png is 28x24 pixels, but its true picture, data/cup2.png, is measured at 56x48: give results of that size"
    )
    assert line in capsys.readouterr().err and line in Path("report/report.html").read_text()
    assert [row["picture"] for row in rows("report/results.csv")] == ["cup0", "cup1", "cup2", "cup1"]


def test_equal_results_are_called_equal(here: Path, capsys: Output) -> None:
    shutil.copytree("results/sharp", "results/again")
    assert evaluate(["--also", "results/sharp,results/again", "--data", "data", "--out", "report"]) == 0
    assert compare_runs(["report"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^  PSNR Y .*0\.00 \(.*equal$", out, re.M) and "won" not in out
    assert Path("report/report.html").read_text().count("<td>equal</td><td>equal</td>") == 11


def test_a_picture_that_went_away_is_said_to_be_missing(here: Path) -> None:
    assert evaluate(ALSO) == 0
    Path("results/sharp/cup1.png").unlink()
    assert compare_runs(["report"]) == 0
    assert "Not shown: cup1: " in Path("report/report.html").read_text()
    assert list(slider()) == ["cup0", "cup2"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "--run is missing: give a run, --also with pictures"),
        (["--also", "bicubic"], "--also bicubic enlarges degraded pictures: give --lq"),
        (["--also", "gone"], "--also is gone, which does not exist"),
        (["--also", "results/sharp,results/sharp"], "--also results/sharp: another arm or run is called so too"),
        (["--also", "results"], "--also results: none of its pictures is called like a true one, such as 'cup0'"),
        (["--also", "bicubic", "--lq", "lq", "--sf", "0"], "--sf is 0: give a number of 1 or more"),
        (["--also", "bicubic", "--lq", "lq", "--sf", "2"], "the same size or 1/2 of it"),
    ],
)
def test_mistakes_get_one_line(here: Path, capsys: Output, words: list[str], line: str) -> None:
    assert evaluate([*words, "--data", "data", "--out", "report"]) == 2
    *_, error = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ") and line in error


def spoil(content: bytes) -> Callable[[bytes], bytes]:
    return lambda _: content


@pytest.mark.parametrize(
    "spoilt",
    [
        spoil(b""),
        spoil(b"{}"),
        spoil(b"[]"),
        spoil(b"null"),
        spoil(b"\xff\xfe\x00\x01"),
        lambda whole: whole[: len(whole) // 2],
        lambda whole: whole.replace(b'"metrics": {', b'"metrics": [], "x": {'),
        lambda whole: whole.replace(b'"psnr_y": ', b'"psnr_y": "x", "y": '),
        lambda whole: whole.replace(b'"psnr_y"', b'"psnr"'),
        lambda whole: whole.replace(b'"measured_from"', b'"measured"'),
    ],
)
def test_a_spoilt_record_is_measured_again(here: Path, capsys: Output, spoilt: Callable[[bytes], bytes]) -> None:
    assert evaluate(ALSO) == 0
    record = sorted(Path("report/restored").rglob("cup1-*.json"))[0]
    whole, results = record.read_bytes(), Path("report/results.csv").read_bytes()
    record.write_bytes(spoilt(whole))
    assert record.read_bytes() != whole
    capsys.readouterr()
    assert evaluate(ALSO) == 0
    said = capsys.readouterr().err
    assert said.count(f"{record} is damaged: it is measured again") == 1 and "5 results, 1 of them to compute" in said
    assert record.read_bytes() == whole and Path("report/results.csv").read_bytes() == results


def test_spoilt_pictures_are_made_again(run_too: Path, capsys: Output) -> None:
    assert evaluate([*RUN, "--also", "bicubic"]) == 0
    pictures = sorted(Path("report").rglob("cup1-*.png"))
    whole, results = [path.read_bytes() for path in pictures], Path("report/results.csv").read_bytes()
    assert len(pictures) == 3  # the degraded one and the two restored ones
    for path in pictures:
        path.write_bytes(path.read_bytes()[:200])
    for record in Path("report/restored").rglob("cup1-*.json"):
        record.unlink()
    capsys.readouterr()
    assert evaluate([*RUN, "--also", "bicubic"]) == 0
    said = capsys.readouterr().err
    assert all(said.count(f"{path} is damaged: it is made again") == 1 for path in pictures)
    assert [path.read_bytes() for path in pictures] == whole
    assert Path("report/results.csv").read_bytes() == results


def test_comparing_needs_no_torch(here: Path) -> None:
    assert evaluate(ALSO) == 0
    page = Path("report/report.html").read_text()
    code = "import sys; sys.modules['torch'] = None; from ldm.evaluation.report.cli import main; main(['report'])"
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "page: report/report.html" in done.stdout, done.stderr
    assert Path("report/report.html").read_text() == page


def test_what_a_disk_holds_back_once_is_read_again(here: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, left = Path.open, 0

    def erring(path: Path, *words: Any, **options: Any) -> Any:
        nonlocal left
        if path.name == "cup0.png" and left:
            left -= 1
            raise OSError(errno.EIO, "Input/output error")
        return opened(path, *words, **options)

    monkeypatch.setattr(Path, "open", erring)
    monkeypatch.setattr("basicsr.utils.retries.PAUSE", 0.01)
    words = ["--also", "bicubic", "--data", "data", "--lq", "lq", "--out"]
    left = 1
    assert evaluate([*words, "without", "--retries", "0"]) == 0
    assert "left out: data/cup0.png: cannot be read as a picture (Input/output error)" in capsys.readouterr().err
    left = 2
    assert evaluate([*words, "with"]) == 0
    said = capsys.readouterr()
    assert "tried again (2 of 2)" in said.err and "left out" not in said.err
    assert len(rows("with/results.csv")) == len(rows("without/results.csv")) + 1 == 3
