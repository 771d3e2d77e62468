"""One command, every checkpoint, every condition: what a model that sees edges makes of the edges that it is told."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image, ImageFilter
from reference.parity import fill
from tiny_run import TINY, write_tiny_model

from basicsr.utils.edge_utils import EdgeMapGenerator
from basicsr.utils.ranges import to_pm1, to_u8
from ldm.config import load_config
from ldm.evaluation.measure.cli import main as evaluate
from ldm.evaluation.measure.pictures import read_tensor
from ldm.evaluation.report.cli import main as compare_runs
from ldm.evaluation.report.statistics import compare
from ldm.models.build import build_model

Output = pytest.CaptureFixture[str]
DEGRADED_HERE = ["--run", "runs/edgy", "--data", "data", "--out", "report", "--steps", "1", "--sampler", "ddim"]
WORDS = [*DEGRADED_HERE, "--lq", "lq"]
ALL = ["--conditions", "edges,none,dummy,gt"]
CONDITIONS = ["edges", "none", "dummy", "gt"]
OLD = "    structcond_stage_config: {params: {channel_mult: [1, 1], attention_resolutions: []}}\n"
EIGHT = OLD.replace("channel_mult", "in_channels: 8, channel_mult")
ALONE = OLD + "    edge_condition: {use: alone, source: gt}\n"


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, torch.Tensor]]:
    """Weights of models that see edges beside the picture, and alone."""
    folder, found = tmp_path_factory.mktemp("weights"), {}
    for name, block in (("beside", EIGHT), ("alone", ALONE)):
        (folder / f"{name}.yaml").write_text(TINY.replace(OLD, block))
        model = build_model(load_config([folder / f"{name}.yaml"]))
        fill(model)  # random weights begin without any effect of the structure
        found[name] = model.state_dict()
    return found


@pytest.fixture
def here(tmp_path: Path, states: dict[str, dict[str, torch.Tensor]], monkeypatch: pytest.MonkeyPatch) -> Path:
    """True pictures in data/, small enough to be full of edges, in lq/ with fewer; runs/edgy with two checkpoints."""
    photo = Image.fromarray(skimage.data.coffee()[::6, ::6])
    for folder in ("data", "lq"):
        (tmp_path / folder).mkdir()
    for index in range(2):
        gt = photo.crop((20 * index, 20, 20 * index + 32, 52))
        gt.save(tmp_path / f"data/cup{index}.png")
        gt.filter(ImageFilter.GaussianBlur(0.7)).save(tmp_path / f"lq/cup{index}.png")
    write_run(tmp_path, "edgy", EIGHT, states["beside"], steps=(1, 2))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_run(
    folder: Path, name: str, block: str, state: dict[str, torch.Tensor], steps: tuple[int, ...] = (2,)
) -> None:
    run = folder / "runs" / name
    for part in ("checkpoints", "configs"):
        (run / part).mkdir(parents=True)
    (run / "configs/2026-01-31T12-00-00-config.yaml").write_text(TINY.replace(OLD, block))
    for step in steps:
        content = {"state_dict": {key: value * 0.9**step for key, value in state.items()}, "global_step": step}
        torch.save(content, run / f"checkpoints/step{step:06d}.ckpt")


def rows(file: str) -> list[dict[str, str]]:
    with Path("report", file).open(newline="") as text:
        return list(csv.DictReader(text))


def restored(condition: str, picture: str = "cup0", step: int = 2) -> np.ndarray:
    (file,) = Path(f"report/restored/edgy/step{step:06d}-{condition}").glob(f"{picture}-*.png")
    return np.asarray(Image.open(file)).astype(int)


def test_every_checkpoint_under_every_condition(here: Path, capsys: Output) -> None:
    assert evaluate([*WORDS, *ALL]) == 0
    said = capsys.readouterr()
    assert "condition gt is an ORACLE" in said.err and "16 results: report/report.html" in said.out
    results = rows("results.csv")
    assert {(row["run"], row["condition"], row["step"]) for row in results} == {
        ("edgy", condition, step) for condition in CONDITIONS for step in "12"
    }
    # Every condition is one of its own, and file names say which, and which is the oracle.
    made = [restored(name) for name in ("edges", "none", "dummy", "gt-oracle")]
    assert all((one != other).any() for index, one in enumerate(made) for other in made[:index])
    assert {row["condition"] for row in rows("checkpoints.csv")} == {*CONDITIONS}
    check_the_paired_differences(results)
    check_the_page()
    # What is there is not made again, and more conditions are added to it.
    assert evaluate([*WORDS, *ALL]) == 0
    assert "16 results, 0 of them to compute" in capsys.readouterr().err
    assert compare_runs(["report"]) == 0
    out = capsys.readouterr().out
    assert "edgy, GT edges (oracle) minus edgy, edges" in out and "edgy, edges minus edgy, no edges" in out


def check_the_paired_differences(results: list[dict[str, str]]) -> None:
    """conditions.csv compares any two on the same pictures, the one that is told less taken away."""
    compared = rows("conditions.csv")
    pairs = {(row["condition"], row["minus"]) for row in compared}
    assert pairs == {
        ("dummy", "none"), ("edges", "none"), ("gt", "none"), ("edges", "dummy"), ("gt", "dummy"), ("gt", "edges")
    }  # fmt: skip
    values = {
        name: {r["picture"]: float(r["psnr_y"]) for r in results if (r["condition"], r["step"]) == (name, "2")}
        for name in ("gt", "edges")
    }
    expected = compare(values["edges"], values["gt"], higher_is_better=True)
    (leak,) = (r for r in compared if (r["condition"], r["minus"], r["metric"]) == ("gt", "edges", "psnr_y"))
    assert [float(leak[key]) for key in ("mean", "low", "high")] == pytest.approx(expected.difference[:3])
    assert (int(leak["wins"]), int(leak["losses"])) == (expected.wins, expected.losses)


def check_the_page() -> None:
    page = Path("report/report.html").read_text()
    assert 'id="edge-conditions"' in page and 'id="differences"' not in page  # which would say the same again
    assert "is a leak and no merit of the model" in page
    assert "1 run · 2 checkpoints · 4 edge conditions · 2 pictures" in page
    slider = json.loads(re.search(r'id="slider-data">(.*?)</script>', page)[1])  # type: ignore[index]  # None fails, as it should
    labels = ["edgy, no edges", "edgy, edges", "edgy, dummy edges", "edgy, GT edges (oracle)"]
    assert list(slider["cup0"]) == ["degraded", *labels, "true"]
    # The grid has the same: each card shows every condition with its crop and its edges.
    cards = page.split('<article class="card">')[1:]
    assert cards and all(all(f"<b>{label}</b>" in card for label in labels) for card in cards)
    assert page.count("<h3>") - sum(card.count("<h3>") for card in cards) == 6


def test_a_drawn_map_that_is_the_true_one_is_the_oracle(here: Path) -> None:
    Path("drawn").mkdir()
    for index in range(2):
        edges_01 = EdgeMapGenerator().edges_01(to_pm1(read_tensor(Path(f"data/cup{index}.png")))[None])
        drawn = Image.fromarray(to_u8(edges_01)[0, 0].numpy())
        drawn.save(f"drawn/cup{index}{'_edge' if index else ''}.png")
    words = [*WORDS, "--checkpoints", "last", "--conditions", "file,gt", "--edges", "drawn"]
    assert evaluate(words) == 0
    for picture in ("cup0", "cup1"):
        assert np.array_equal(restored("file", picture), restored("gt-oracle", picture))
    # A corrected map is another result, and the earlier one stays.
    Image.new("L", (32, 32)).save("drawn/cup0.png")
    assert evaluate(words) == 0
    assert len(list(Path("report/restored/edgy/step000002-file").glob("cup0-*.png"))) == 2
    assert len(list(Path("report/restored/edgy/step000002-file").glob("cup1-*.png"))) == 1


def test_runs_with_and_without_edges_side_by_side(here: Path, capsys: Output) -> None:
    plain = write_tiny_model(here)
    write_run(here, "plain", OLD, plain)
    assert evaluate([*WORDS, "--run", "runs/plain", "--checkpoints", "last", "--conditions", "none,edges"]) == 0
    results = rows("results.csv")
    assert {(row["run"], row["condition"]) for row in results} == {("edgy", "none"), ("edgy", "edges"), ("plain", "")}
    assert Path("report/restored/plain/step000002").is_dir()  # named as ever
    page = Path("report/report.html").read_text()
    assert "edgy, edges</h3>" not in page.split('id="edge-conditions"')[0]
    assert 'id="differences"' in page and "2 runs · 2 checkpoints · 2 edge conditions" in page
    # By default such a run is told the edges of the degraded picture, and what was made of those is not made again.
    capsys.readouterr()
    assert evaluate([*WORDS, "--checkpoints", "last"]) == 0
    assert "2 results, 0 of them to compute" in capsys.readouterr().err


def test_edge_to_picture_is_told_the_true_edges_and_calls_them_edges(
    here: Path, states: dict[str, dict[str, torch.Tensor]], capsys: Output
) -> None:
    write_run(here, "sketch", ALONE, states["alone"])
    words = ["--run", "runs/sketch", "--data", "data", "--out", "report", "--steps", "1"]
    assert evaluate([*words, "--conditions", "edges,none"]) == 0
    assert "ORACLE" not in capsys.readouterr().err  # where edges are all there is to see, nothing leaks
    assert {row["condition"] for row in rows("results.csv")} == {"edges", "none"}


def test_sixteen_times_as_large(here: Path) -> None:
    (config,) = Path("runs/edgy/configs").iterdir()
    config.write_text(config.read_text() + "sf: 16\n")
    for index in range(2):
        Image.open(f"data/cup{index}.png").resize((2, 2)).save(f"lq/cup{index}.png")
    assert evaluate([*WORDS, "--checkpoints", "last", "--border", "0"]) == 0  # 1/16 of each side
    assert restored("edges").shape == (32, 32, 3)
    assert evaluate([*DEGRADED_HERE, "--checkpoints", "last", "--border", "0"]) == 0
    assert len(list(Path("report/lq").glob("*.png"))) == 2


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (["--conditions", "edge"], "--conditions 'edge' is not known: did you mean 'edges'?"),
        (["--conditions", "gt,gt"], "--conditions is gt,gt: give each once"),
        (["--conditions", "file"], "--edges and condition file belong together"),
        (["--edges", "data"], "--edges and condition file belong together"),
        (["--conditions", "file", "--edges", "gone"], "--edges is gone, which does not exist"),
        (["--conditions", "file", "--edges", "one"], "there is no picture of edges cup1_edge.png"),
    ],
)
def test_mistakes(here: Path, capsys: Output, more: list[str], line: str) -> None:
    Path("one").mkdir()
    Image.new("L", (32, 32)).save("one/cup0_edge.png")
    assert evaluate([*WORDS, *more]) == 2
    *_, error = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ") and line in error


def test_conditions_for_runs_that_see_no_edges_are_refused(here: Path, capsys: Output) -> None:
    write_run(here, "plain", OLD, write_tiny_model(here))
    words = ["--run", "runs/plain", "--data", "data", "--out", "report"]
    assert evaluate([*words, *ALL]) == 2
    assert "--conditions is edges,none,dummy,gt: no run's model sees edges" in capsys.readouterr().err
