"""scripts/edge_maps.py as its users run it, and what a data set reads of its maps."""

from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image

from basicsr.data.realesrgan_dataset import RealESRGANDataset
from basicsr.utils.edge_utils import EdgeMapGenerator
from ldm.inference.edge_maps import main

PHOTO = skimage.data.astronaut()[:96, 160:256]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two photographs, one of them in a subfolder."""
    (tmp_path / "in" / "town").mkdir(parents=True)
    Image.fromarray(PHOTO).save(tmp_path / "in" / "a.png")
    Image.fromarray(PHOTO[:, ::-1]).save(tmp_path / "in" / "town" / "b.bmp")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def edges(**settings: object) -> np.ndarray:
    """Of the photograph, in {0, 255}."""
    found = EdgeMapGenerator(**settings).generate_from_numpy(PHOTO, "RGB", normalize_input=False)  # type: ignore[arg-type]  # keywords of several types
    return (255 * found[..., 0]).astype(np.uint8)


def test_maps_are_the_generators_by_the_pictures_names(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert main(["in", "out"]) == 0
    made = np.asarray(Image.open("out/a.png"))
    assert 0 < made.mean() < 128 and np.array_equal(made, edges())
    assert Image.open("out/town/b.png").size == (96, 96)


SETTINGS: list[tuple[str, dict[str, object]]] = [
    ("--thresholds median", {"threshold_mode": "median"}),
    ("--thresholds median --low_factor 0.5 --closing 5", {"median_low_factor": 0.5, "threshold_mode": "median",
                                                          "morph_kernel_size": 5}),
    ("--low 20 --high 60 --blur 3 --sigma 0.8", {"low_threshold": 20, "high_threshold": 60, "gaussian_kernel_size": 3,
                                                 "gaussian_sigma": 0.8}),
]  # fmt: skip


@pytest.mark.parametrize(("words", "settings"), SETTINGS)
def test_the_generators_settings(here: Path, words: str, settings: dict[str, object]) -> None:
    assert main(["in", "out", *words.split()]) == 0
    assert np.array_equal(np.asarray(Image.open("out/a.png")), edges(**settings))
    assert not np.array_equal(edges(**settings), edges())


def test_inverted_maps_are_black_on_white(here: Path) -> None:
    assert main(["in", "out", "--invert"]) == 0
    assert np.array_equal(np.asarray(Image.open("out/a.png")), 255 - edges())


def test_a_map_that_was_drawn_in_is_kept(here: Path) -> None:
    assert main(["in", "out"]) == 0
    drawn = Image.new("L", (96, 96), 255)
    drawn.save("out/a.png")
    assert main(["in", "out"]) == 0 and Image.open("out/a.png").tobytes() == drawn.tobytes()
    assert main(["in", "out", "--overwrite"]) == 0 and np.array_equal(np.asarray(Image.open("out/a.png")), edges())


def test_beside_the_pictures_maps_are_no_pictures_and_training_reads_them(here: Path) -> None:
    for _ in range(2):
        assert main(["in", "in"]) == 0
    files = sorted(path.relative_to(here / "in").as_posix() for path in (here / "in").rglob("*.*"))
    assert files == ["a.png", "a_edge.png", "town/b.bmp", "town/b_edge.png"]
    dataset = RealESRGANDataset("in", crop_size=96, gt_size=96, use_hflip=False, edge_map_path="in")
    assert sorted(Path(dataset[i]["gt_path"]).name for i in range(len(dataset))) == ["a.png", "b.bmp"]
    (sample,) = [sample for sample in dataset if Path(sample["gt_path"]).name == "a.png"]
    assert np.array_equal(sample["edge"][0].numpy() * 255, edges())
    (b,) = [sample for sample in dataset if Path(sample["gt_path"]).name == "b.bmp"]
    assert not b["edge"].any()  # its map lies in another folder


def test_a_broken_picture_is_left_out(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    (here / "in" / "c.png").write_bytes(b"no picture")
    assert main(["in", "out"]) == 1
    assert sorted(path.name for path in (here / "out").rglob("*.png")) == ["a.png", "b.png"]


@pytest.mark.parametrize(("words", "line"), [
    (["none", "out"], "none"),
    (["in", "out", "--low", "9", "--thresholds", "median"], "--low belongs to --thresholds fixed"),
    (["in", "out", "--high_factor", "2"], "--high_factor belongs to --thresholds median"),
    (["in", "out", "--blur", "4"], "--blur is 4: give an odd number"),
    (["in", "in/a.png"], "in/a.png"),
])  # fmt: skip
def test_mistakes_get_one_line(here: Path, capsys: pytest.CaptureFixture[str], words: list[str], line: str) -> None:
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and line in error and error.count("\n") == 1
