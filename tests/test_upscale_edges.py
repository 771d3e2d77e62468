"""scripts/upscale.py with a model that sees edges: where they come from, and what a result is a result of."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from reference.parity import fill
from tiny_run import ROOT, TINY

from ldm.config import load_config
from ldm.inference import cli
from ldm.models.build import build_model

PHOTO = Image.fromarray(skimage.data.coffee()[::6, ::6])
EIGHT = """
    structcond_stage_config: {params: {in_channels: 8, channel_mult: [1, 1], attention_resolutions: []}}
"""
ALONE = "    edge_condition: {use: alone, source: gt}\n"
MARK = "    first_stage_config:"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models with random weights: beside.yaml and alone.yaml with their .ckpt; sixteen.yaml is the first at sf 16."""
    folder = tmp_path_factory.mktemp("weights")
    old = "    structcond_stage_config: {params: {channel_mult: [1, 1], attention_resolutions: []}}\n"
    assert old in TINY and MARK in TINY
    texts = {"beside": TINY.replace(old, EIGHT.lstrip("\n")), "alone": TINY.replace(MARK, ALONE + MARK)}
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text)
        model = build_model(load_config([folder / f"{name}.yaml"]))
        fill(model)  # at the first step edges, and the whole structure, would change nothing
        torch.save({"state_dict": model.state_dict()}, folder / f"{name}.ckpt")
    (folder / "sixteen.yaml").write_text(f"base: {folder}/beside.yaml\nsf: 16\n")
    return folder


@pytest.fixture
def here(tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder as the working directory: in/ with two pictures."""
    for name, left in (("a", 20), ("b", 40)):
        photo(tmp_path / f"in/{name}.png", left)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(weights: Path) -> Callable[..., int]:
    def with_model(*words: str, model: str = "beside", ckpt: str = "") -> int:
        files = ["--base", str(weights / f"{model}.yaml"), "--ckpt", str(weights / f"{ckpt or model}.ckpt")]
        return cli.main([*files, "--steps", "1", "--colorfix", "none", *words])

    return with_model


Run = Callable[..., int]


def photo(path: Path, left: int = 20, side: int = 16) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    PHOTO.crop((left, 20, left + side, 20 + side)).save(path)


def drawn(path: Path, row: int, side: int = 32) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((side, side), np.uint8)
    pixels[row] = 255
    Image.fromarray(pixels).save(path)


def pixels(file: str) -> np.ndarray:
    return np.asarray(Image.open(file)).astype(int)


def test_every_source_and_what_was_told_beside_the_result(here: Path, run: Run) -> None:
    drawn(here / "in/a_edge.png", 5)
    made = {}
    for word in ("lq", "none", "dummy", "file"):
        words = [
            "--input",
            "in/a.png",
            "--edges",
            word,
            "--output",
            word,
            "--save_edges",
            "--compare",
            "--upscale",
            "2",
        ]
        assert run(*words) == 0
        made[word] = pixels(f"{word}/a.png")
    assert all((made[one] != made[other]).any() for one, other in (("lq", "none"), ("lq", "file"), ("none", "dummy")))
    assert np.array_equal(pixels("file/a_edges_told.png"), pixels("in/a_edge.png"))
    assert pixels("none/a_edges_told.png").max() == 0 and set(np.unique(pixels("lq/a_edges_told.png"))) == {0, 255}
    assert pixels("lq/a_compare.png").shape[1] > 3 * 32
    # The map of one run, corrected or not, is one that the next can be given.
    assert run("--input", "in/a.png", "--edges", "lq/a_edges_told.png", "--output", "again", "--upscale", "2") == 0
    assert pixels("again/a.png").shape == (32, 32, 3)
    assert run("--input", "in/a.png", "--edge_scale", "4", "--output", "guided", "--upscale", "2") == 0
    assert (pixels("guided/a.png") != made["lq"]).any()


def test_edges_beside_their_pictures_and_in_a_folder(here: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    photo(here / "in/sub/a.png", 60)
    words = ["--input", "in", "--upscale", "2", "--batch", "2"]
    for folder, name in (("maps", ""), ("in", "_edge")):
        for index, picture in enumerate(("a", "b", "sub/a")):
            drawn(here / f"{folder}/{picture}{name}.png", 3 + index)
        assert run(*words, "--edges", "file" if name else "maps", "--output", "beside" if name else "folder") == 0
    names = {"a.png", "b.png", "sub/a.png"}  # the pictures of edges are no inputs
    assert {file.relative_to("beside").as_posix() for file in Path("beside").rglob("*.png")} == names
    for name in names:
        assert np.array_equal(pixels(f"beside/{name}"), pixels(f"folder/{name}"))
    # Without them they are pictures like any other.
    assert run(*words, "--output", "all") == 0
    assert (here / "all/a_edge.png").exists()
    (here / "in/b_edge.png").unlink()
    capsys.readouterr()
    assert run(*words, "--edges", "file", "--output", "lacking") == 1
    assert "error: in/b.png: the picture of its edges, in/b_edge.png, is not there" in capsys.readouterr().err


def test_a_result_of_other_edges_is_not_taken_for_finished(
    here: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn(here / "in/a_edge.png", 5)
    words = ["--input", "in/a.png", "--upscale", "2"]
    assert run(*words, "--edges", "file") == 0
    assert run(*words, "--edges", "file") == 0
    assert "skipped" not in capsys.readouterr().err
    for other in (["--edges", "lq"], ["--edges", "none"], ["--edges", "file", "--edge_scale", "2"]):
        assert run(*words, *other) == 2
        assert "made from another picture or with other settings" in capsys.readouterr().err
    drawn(here / "in/a_edge.png", 6)  # corrected
    assert run(*words, "--edges", "file") == 2
    assert run(*words, "--edges", "file", "--overwrite") == 0
    assert run(*words, "--edges", "lq", "--output", "lq") == 0
    assert run(*words, "--output", "lq") == 0  # lq is the default


def test_edge_to_picture(here: Path, run: Run) -> None:
    drawn(here / "sketch.png", 7)
    words = ["--input", "sketch.png", "--upscale", "1"]
    assert run(*words, model="alone") == 0
    made = Image.open("results/sketch.png")
    assert made.mode == "RGB" and made.size == (32, 32)
    assert run(*words, "--start", "input", "--prompt", "a road", "--output", "from_edges", model="alone") == 0
    assert (pixels("from_edges/sketch.png") != pixels("results/sketch.png")).any()
    assert run("--input", "in/a.png", "--edges", "lq", "--upscale", "2", model="alone") == 0


def test_a_factor_of_sixteen(here: Path, run: Run) -> None:
    photo(here / "tiny.png", side=8)
    assert run("--input", "tiny.png", "--upscale", "16") == 0
    assert Image.open("results/tiny.png").size == (128, 128)
    # It is what a config with sf 16 means without a word.
    assert run("--input", "tiny.png", "--output", "meant", model="sixteen", ckpt="beside") == 0
    assert np.array_equal(pixels("meant/tiny.png"), pixels("results/tiny.png"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--edges", "non"], "--edges is non, which is not there: did you mean none?"),
        (["--edges", "input"], "--edges is input: this model wants edges beside the input"),
        (["--edges", "in"], "the picture of its edges, in/a_edge.png, is not there"),
        (["--edge_scale", "x"], "--edge_scale"),
        (["--start", "noise", "--start_t", "5"], "--start is noise, which is all there is at the last step"),
    ],
)
def test_mistakes(here: Path, run: Run, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "in/b.png").unlink()
    if words == ["--edges", "in"]:
        (here / "in/a.png").rename(here / "a.png")
        assert run("--input", "a.png", *words) == 2
    else:
        assert run("--input", "in/a.png", *words) == 2
    assert message in capsys.readouterr().err


def test_a_file_of_edges_is_for_one_picture(here: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    drawn(here / "e.png", 3)
    assert run("--input", "in", "--edges", "e.png") == 2
    assert "--edges is e.png, one picture for all of in: give a folder of them" in capsys.readouterr().err


def test_a_model_that_sees_no_edges(
    here: Path, capsys: pytest.CaptureFixture[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert cli.main(["--input", "in/a.png", "--steps", "1", "--edges", "lq"]) == 2
    assert "--edges is lq: this model sees no edges; one whose config has" in capsys.readouterr().err


def test_edges_go_together_with_a_reference(here: Path, run: Run) -> None:
    photo(here / "refs/a.png", 60, 32)
    photo(here / "refs/b.png", 60, 32)
    words = ("--input", "in", "--upscale", "2", "--edges", "lq", "--reference", "refs", "--reference_rate", "0.2")
    distances = []
    for output, more in (("plain", words[:6]), ("both", words)):
        assert run(*more, "--output", output) == 0
        distances.append(np.abs(pixels(f"{output}/a.png") - pixels("refs/a.png")).mean())
    assert distances[1] < distances[0]
    assert run(*words, "--edges", "none", "--output", "without") == 0
    assert (pixels("without/a.png") != pixels("both/a.png")).any()


def test_two_processes_draw_the_same_with_edges(here: Path, weights: Path) -> None:
    drawn(here / "in/a_edge.png", 5)
    model = ["--base", str(weights / "beside.yaml"), "--ckpt", str(weights / "beside.ckpt"), "--device", "cpu"]
    words = ["--input", "in", "--edges", "file", "--steps", "1", "--upscale", "2", "--save_edges", "--batch", "1"]
    drawn(here / "in/b_edge.png", 9)
    for devices in ("1", "2"):
        script = [sys.executable, str(ROOT / "scripts/upscale.py"), *model, *words, "--devices", devices]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        done = subprocess.run([*script, "--output", devices], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    made = [{file.name: file.read_bytes() for file in Path(devices).iterdir()} for devices in ("1", "2")]
    assert made[0] == made[1] and {"a.png", "b.png", "a_edges_told.png"} <= set(made[0])
