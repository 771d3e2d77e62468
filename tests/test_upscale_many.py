"""scripts/upscale.py among very many pictures: a manifest, and reading again."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import skimage.data
from PIL import Image
from tiny_run import write_tiny_model

from ldm.inference import cli

WORDS = ["--base", "tiny.yaml", "--ckpt", "model.ckpt", "--steps", "2", "--upscale", "2", "--device", "cpu"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny.yaml and model.ckpt."""
    folder = tmp_path_factory.mktemp("weights")
    write_tiny_model(folder)
    return folder


@pytest.fixture
def here(linked_here: Callable[[Path], Path], weights: Path) -> Path:
    """A user's folder with the weights and a photo, as the working directory."""
    photo(linked_here(weights) / "photo.png")
    return Path.cwd()


def photo(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(skimage.data.chelsea()[50:62, 100:110]).save(path)


def run(*words: str) -> int:
    return cli.main([*WORDS, *words])


def files(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


def test_a_manifest_goes_on_without_a_look_at_the_files(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.png", "sub/b.jpg"):
        photo(here / "in" / name)
    (here / "in/c.png").write_text("no picture")
    for folder in ("in", "in/sub"):
        os.utime(here / folder, (0, 0))
    words = ("--input", "in", "--manifest")
    kept = {f"manifest/{name}" for name in ("jobs.jsonl", "done-0.jsonl", "made_from.txt", "failed.txt")}
    assert run(*words) == 1
    assert "2 upscaled, 1 failed; results: results; what failed: results/manifest/failed.txt" in capsys.readouterr().out
    assert files(here / "results") == {"a.png", "sub/b.jpg.png"} | kept
    assert (here / "results/manifest/failed.txt").read_text().startswith("in/c.png: cannot be read as a picture")
    (here / "results/a.png").unlink()
    photo(here / "in/c.png")  # written anew under its name: it had failed, so that its turn comes
    os.utime(here / "in", (0, 0))
    assert run(*words) == 0
    said = capsys.readouterr()
    assert "1 upscaled, 2 skipped" in said.out and "3 pictures, 1 of them to do" in said.err
    assert files(here / "results") == {"c.png", "sub/b.jpg.png"} | kept - {"manifest/failed.txt"}
    assert run("--input", "in") == 0  # without a manifest the files are looked at
    assert "1 upscaled, 2 skipped" in capsys.readouterr().out
    photo(here / "in/sub/d.png")
    assert run(*words) == 0
    said = capsys.readouterr()
    assert "1 upscaled, 3 skipped" in said.out and said.err.count("they are listed again") == 1
    assert run(*words, "--seed", "7") == 2
    assert "--output is" in (error := capsys.readouterr().err) and "made with other settings or weights" in error
    assert run(*words, "--seed", "7", "--overwrite") == 0 and "4 upscaled" in capsys.readouterr().out
    assert run(*words, "--seed", "7") == 0 and "4 skipped" in capsys.readouterr().out


def test_results_that_are_there_already_come_into_a_manifest(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo(here / "in/a.png")
    assert run("--input", "in") == 0
    assert run("--input", "in", "--manifest") == 0 and "1 skipped" in capsys.readouterr().out
    assert (here / "results/manifest/done-0.jsonl").read_text() == '"a.png"\n'
    assert run("--input", "photo.png", "--manifest") == 2
    assert "--manifest is of a folder's pictures, and photo.png is none" in capsys.readouterr().err


def test_a_picture_that_a_disk_holds_back_once_is_read_again(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    photo(here / "in/a.png")
    left = 2
    read = Path.read_bytes

    def erring(path: Path) -> bytes:
        nonlocal left
        if path.name == "a.png" and left:
            left -= 1
            raise OSError(errno.EIO, "Input/output error")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", erring)
    monkeypatch.setattr("basicsr.utils.retries.PAUSE", 0.01)
    assert run("--input", "in", "--retries", "1") == 2
    assert "error: in/a.png: cannot be read (Input/output error)" in capsys.readouterr().err
    left = 2
    assert run("--input", "in") == 0
    said = capsys.readouterr()
    assert "1 upscaled" in said.out and "tried again (2 of 2)" in said.err
    assert run("--input", "in", "--retries", "-1") == 2 and "--retries is -1" in capsys.readouterr().err
