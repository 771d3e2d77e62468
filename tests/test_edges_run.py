"""The edge fork's two YAMLs, unchanged but for paths and widths: full size on the meta device, trained, resumed."""

from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from test_configs import TINY

from ldm.config import load_config
from ldm.inference.cli import main as upscale
from ldm.models.build import build_model
from ldm.training.loggers import read_metrics
from ldm.util import instantiate_from_config
from main import main

FOLDER = Path(__file__).parent / "published"
EDGE_800 = FOLDER / "v2-finetune_text_T_512_edge_800.yaml"
CANNY_IN = FOLDER / "v2-finetune_text_T_512_canny_in.yaml"
OWN = Path(__file__).parents[1] / "configs/stableSRNew"
FIRST = "structcond_stage_model.input_blocks.0.0.weight"
SIDE = 64
PICTURES = [f"{data}.params.gt_path={{}}" for data in ("data.params.train", "data.params.validation")]
SIZES = ["degradation.gt_size=64", "data.params.num_workers=0"]
SIZES += [f"data.params.{role}.params.{key}=64" for role in ("train", "validation") for key in ("crop_size", "gt_size")]
WORDS = [*TINY[1:], *SIZES, "data.params.train.params.queue_size=4"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six pictures and a tiny checkpoint of a model without edges, as the working directory."""
    (tmp_path / "pictures").mkdir()
    photo = Image.fromarray(skimage.data.astronaut())
    for index in range(6):
        photo.crop((64 * index, 64, 64 * index + 80, 144)).save(tmp_path / "pictures" / f"{index}.png")
    torch.manual_seed(0)
    model = build_model(load_config([CANNY_IN], TINY))
    with torch.no_grad():  # layers that begin at zero would hide what the structure does
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "plain.ckpt")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(file: Path, name: str, steps: int, *words: str) -> int:
    paths = ["model.params.ckpt_path=plain.ckpt", *(word.format("pictures") for word in PICTURES)]
    steps_words = ["--max_steps", str(steps), "--accumulate_grad_batches", "1", "lightning.trainer.log_every_n_steps=1"]
    return main(["--base", str(file), "--logger", "csv", "-n", name, *steps_words, *paths, *WORDS, *words])


def run_of(folder: Path, name: str) -> Path:
    return next((folder / "logs").glob(f"*_{name}"))


def upscaled(run: Path, picture: str, *words: str) -> np.ndarray:
    """What the run's last checkpoint makes of a picture."""
    (config,) = list((run / "configs").glob("*-config.yaml"))[:1]
    files = ["--base", str(config), "--ckpt", str(run / "checkpoints/last.ckpt"), "--input", picture, "--overwrite"]
    assert upscale([*files, "--steps", "1", "--colorfix", "none", *words]) == 0
    return np.asarray(Image.open(Path("results", Path(picture).name))).astype(int)


@pytest.mark.parametrize(
    "file", [EDGE_800, CANNY_IN, OWN / CANNY_IN.name, OWN / "v2-finetune_text_T_512_edges_in.yaml"]
)
def test_it_builds_in_full_size(file: Path) -> None:
    config = load_config([file], ["model.params.ckpt_path=null"])
    with torch.device("meta"):
        model = instantiate_from_config({key: config.values["model"][key] for key in ("target", "params")})
    sees = model.get_parameter(FIRST).shape
    edged = model.edge_condition is not None and model.edge_condition.use == "beside"
    assert sees == (256, 8 if edged else 4, 3, 3)
    if file.parent == FOLDER:
        assert edged == (file == EDGE_800)
    elif file.name == CANNY_IN.name:
        assert (model.edge_condition.use, model.edge_condition.source) == ("alone", "gt")


@pytest.mark.parametrize(
    "file", [EDGE_800, CANNY_IN, OWN / CANNY_IN.name, OWN / "v2-finetune_text_T_512_edges_in.yaml"]
)
def test_a_check_misses_nothing_but_files(here: Path, capsys: pytest.CaptureFixture[str], file: Path) -> None:
    assert main(["--base", str(file), "--check"]) == 2
    said = capsys.readouterr()
    problems = [line for line in (said.err + said.out).splitlines() if line.startswith("error: ")]
    assert problems and all("is not there" in line for line in problems)
    assert ("sf is 1: trains to restore" in said.out) == (file == CANNY_IN)


def test_the_forks_edge_yaml_trains_and_a_resumed_run_is_the_straight_one(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(EDGE_800, "straight", 20) == 0
    said = capsys.readouterr().out
    assert "Edges as a condition: beside the LQ latent, source lq" in said
    assert "ignore_keys makes structcond_stage_model.input_blocks.0.0 random. Better: leave it out" in said
    assert train(EDGE_800, "parted", 10) == 0
    straight, parted = (run_of(here, name) for name in ("straight", "parted"))
    assert main(["--resume", str(parted), "--max_steps", "20"]) == 0
    rows = read_metrics(straight / "metrics.csv")
    assert rows == read_metrics(parted / "metrics.csv")
    assert len([row for row in rows if "train/loss_edge" in row]) == 20
    looks = [row for row in rows if "edge_monitor/effect" in row]
    assert [row["step"] for row in looks] == [0, 9, 19]  # after the 1st, 10th and 20th step
    names = {f"{of}_{half}" for of in ("weight", "gradient") for half in ("picture", "edges", "ratio")}
    for look in looks:
        seen = {name.removeprefix("edge_monitor/") for name in look if name.startswith("edge_monitor/")}
        assert seen == names | {"effect", "gain"}
        assert all(look[f"edge_monitor/{name}"] > 0 for name in names | {"effect"})
    assert (straight / "edge_monitor.png").read_bytes().startswith(b"\x89PNG")
    # A result is sixteen times as large, as the config's sf says; without edges it is another one.
    photo = Image.open("pictures/0.png").crop((0, 0, 8, 8))
    photo.save("small.png")
    made = {edges: upscaled(parted, "small.png", "--edges", edges) for edges in ("lq", "none", "dummy")}
    assert made["lq"].shape == (128, 128, 3) and (made["dummy"] != made["none"]).any()


def test_the_forks_canny_yaml_says_what_it_trains(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(CANNY_IN, "theirs", 20) == 0
    said = capsys.readouterr().out
    line = "sf is 1: trains to restore degraded pictures at their own size; for edge to picture"
    assert said.count(line) == 1 and "model.params.edge_condition={use: alone, source: gt}" in said
    run = run_of(here, "theirs")
    assert main(["--resume", str(run), "--max_steps", "21"]) == 0
    assert len([row for row in read_metrics(run / "metrics.csv") if "train/loss" in row]) == 21
    assert upscaled(run, "pictures/0.png").shape == (80, 80, 3)  # as it is, it restores pictures at their own size


def test_the_key_that_it_names_makes_it_edge_to_picture(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(CANNY_IN, "alone", 2, "model.params.edge_condition={use: alone, source: gt}") == 0
    said = capsys.readouterr().out
    assert "Edges as a condition: alone (edge to picture), source gt" in said
    assert "sf is 1" not in said and "ORACLE" not in said
    assert (run_of(here, "alone") / "images" / "final.png").is_file()
    lines = np.zeros((64, 64), np.uint8)
    lines[20, 8:50] = 255
    Image.fromarray(lines).save("lines.png")
    made = [upscaled(run_of(here, "alone"), "lines.png", "--start", start) for start in ("noise", "input")]
    assert made[0].shape == (64, 64, 3) and (made[0] != made[1]).any()
