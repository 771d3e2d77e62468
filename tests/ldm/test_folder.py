"""Reading and writing while others are computed: what overlaps, what survives, what is told."""

import errno
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from reference.models import stage1
from skimage import data

from basicsr.utils.errors import UserError
from basicsr.utils.files import OutputError, write_whole
from basicsr.utils.img_util import read_picture
from ldm.inference import folder
from ldm.inference.folder import FileOptions, list_tasks, read_ahead, upscale_files
from ldm.inference.networks import Networks
from ldm.inference.pipeline import Upscaler
from ldm.inference.settings import UpscaleSettings
from ldm.inference.tiled_vae import no_progress

NAMES = ("a.png", "b.png", "c.png")


@pytest.fixture(scope="module")
def upscaler() -> Upscaler:
    torch.manual_seed(0)
    networks = Networks(stage1().eval().requires_grad_(False), None, 32, torch.device("cpu"))
    return Upscaler(networks, UpscaleSettings(steps=1, upscale=1, batch=1))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Three of them, in a folder."""
    (tmp_path / "in").mkdir()
    for index, name in enumerate(NAMES):
        Image.fromarray(data.chelsea()[:16, 10 * index : 10 * index + 16]).save(tmp_path / "in" / name)
    return tmp_path / "in"


def run(upscaler: Upscaler, pictures: Path, progress: Any = no_progress) -> folder.Outcome:
    tasks = list_tasks(pictures, pictures.parent / "out")
    return upscale_files(upscaler, tasks, FileOptions(), progress)


def written(pictures: Path) -> list[str]:
    return sorted(file.name for file in (pictures.parent / "out").glob("*"))


def test_the_next_is_read_and_the_last_written_while_one_is_computed(
    upscaler: Upscaler, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each waits for the other: where they took turns, the barriers would break.
    read_b, wrote_a = threading.Barrier(2, timeout=60), threading.Barrier(2, timeout=60)
    samples: list[int] = []

    def reading(file: Path, *limits: int) -> Any:
        if file.name == "b.png":
            read_b.wait()
        return read_picture(file, *limits)

    def writing(file: Path, content: bytes) -> None:
        if file.name == "a.png":
            wrote_a.wait()
        write_whole(file, content)

    def progress(name: str, parts: Iterable[Any]) -> Iterable[Any]:
        if name == "sampling":
            samples.append(len(samples))
            if len(samples) <= 2:
                (read_b, wrote_a)[samples[-1]].wait()
        return parts

    monkeypatch.setattr(folder, "read_picture", reading)
    monkeypatch.setattr(folder, "write_whole", writing)
    outcome = run(upscaler, pictures, progress)
    assert [task.source.name for task in outcome.finished] == list(NAMES) == written(pictures)


def test_ctrl_c_waits_for_what_is_being_written(
    upscaler: Upscaler, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted = threading.Event()

    def late(file: Path, content: bytes) -> None:
        assert interrupted.wait(60)
        write_whole(file, content)

    def progress(name: str, parts: Iterable[Any]) -> Iterator[Any]:
        samples.append(name == "sampling")
        if sum(samples) == 2 and name == "sampling":
            interrupted.set()
            raise KeyboardInterrupt
        yield from parts

    samples: list[bool] = []
    monkeypatch.setattr(folder, "write_whole", late)
    with pytest.raises(KeyboardInterrupt):
        run(upscaler, pictures, progress)
    assert written(pictures) == ["a.png"]
    monkeypatch.setattr(folder, "write_whole", write_whole)
    outcome = run(upscaler, pictures)
    assert [task.source.name for task in outcome.skipped] == ["a.png"]
    assert [task.source.name for task in outcome.finished] == ["b.png", "c.png"]


def test_failures_are_told_in_the_order_of_the_pictures(upscaler: Upscaler, pictures: Path) -> None:
    Image.new("RGB", (4, 4)).save(pictures / "a.png")
    (pictures / "c.png").write_text("no picture")

    def progress(name: str, parts: Iterable[Any]) -> Iterable[Any]:
        if name == "sampling":
            raise UserError("this one is not to be")
        return parts

    failed = run(upscaler, pictures, progress).failed
    assert [task.source.name for task, _ in failed] == list(NAMES)
    assert "not to be" in str(failed[1][1])


def test_an_output_that_cannot_be_written_ends_it(
    upscaler: Upscaler, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: Path, content: bytes) -> None:
        raise OutputError(file, OSError(errno.ENOSPC, "full"))

    monkeypatch.setattr(folder, "write_whole", full)
    with pytest.raises(OutputError, match="no room on the disk"):
        run(upscaler, pictures)


def test_read_ahead_hands_on_all_and_any_error() -> None:
    def numbers() -> Iterator[int]:
        yield from range(3)
        raise ValueError("the end")

    seen = []
    with pytest.raises(ValueError, match="the end"):
        for number in read_ahead(numbers()):
            seen.append(number)
    assert seen == [0, 1, 2]
    assert list(read_ahead(iter(range(4)))) == [0, 1, 2, 3]
