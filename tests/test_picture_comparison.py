"""What compares pictures for the README: the strip, and the way to Real-ESRGAN's results."""

import subprocess
import sys
from pathlib import Path

import pytest
import skimage.data
from PIL import Image

ROOT = Path(__file__).parents[1]


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """Two true pictures with small copies, and a folder of another's results."""
    for folder in ("true", "lq", "theirs"):
        (tmp_path / folder).mkdir()
    for index, name in enumerate(("a", "b")):
        photo = Image.fromarray(skimage.data.astronaut()).crop((64 * index, 64, 64 * index + 64, 128))
        photo.save(tmp_path / "true" / f"{name}.png")
        photo.resize((16, 16)).save(tmp_path / "lq" / f"{name}.png")
        photo.save(tmp_path / "theirs" / f"{name}.png")
    return tmp_path


def run(script: str, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / script), *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=280)


def test_the_strip_has_every_column_and_is_small(here: Path) -> None:
    words = ["true", "lq", "--also", "theirs=theirs", "--side", "48", "--bytes", "60000", "--output", "strip.jpg"]
    done = run("picture_strip.py", *words, cwd=here)
    assert done.returncode == 0, done.stderr
    assert (here / "strip.jpg").stat().st_size <= 60_000
    with Image.open(here / "strip.jpg") as strip:
        assert strip.width == 7 * (192 + 4) + 4 and strip.height == 2 * (192 + 4) + 26  # crops are shown four times
    (here / "theirs" / "b.png").unlink()
    done = run("picture_strip.py", *words, cwd=here)
    assert done.returncode == 2 and "there is no picture called b" in done.stderr and done.stderr.count("error:") == 1


def test_real_esrgan_says_what_it_needs(here: Path) -> None:
    done = run("real_esrgan.py", "nowhere", "out", cwd=here)
    assert done.returncode == 2 and done.stderr == "error: nowhere: no pictures there\n"
    done = run("real_esrgan.py", "lq", "out", cwd=here)  # the tests' environment has no ncnn
    assert done.returncode == 2 and "--help says what to install" in done.stderr and not (here / "out").exists()
