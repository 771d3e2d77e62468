"""What is behind the web page: refusals in a sentence, stopping, one upscale at a time. Needs no Gradio."""

import threading
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from reference.models import stage1

from basicsr.utils.errors import FieldError, UserError
from ldm.inference.networks import Networks
from ldm.inference.pipeline import NotEnoughMemoryError, Upscaler
from ldm.inference.service import NO_MEMORY, Comparison, Service, Stop, StoppedError, friendly_errors
from ldm.inference.settings import UpscaleSettings

SETTINGS = UpscaleSettings(upscale=2, steps=3)
PHOTO = Image.fromarray(skimage.data.chelsea()).crop((100, 60, 124, 80))  # 24 x 20 pixels


@pytest.fixture(scope="module")
def networks() -> Networks:
    torch.manual_seed(0)
    return Networks(stage1().eval().requires_grad_(False), None, 32, torch.device("cpu"))


@pytest.fixture
def service(networks: Networks, tmp_path: Path) -> Service:
    return Service(networks, max_pixels=5000)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    PHOTO.save(tmp_path / "cat.png")
    return tmp_path / "cat.png"


def finished(service: Service, file: Path, settings: UpscaleSettings = SETTINGS) -> Comparison:
    return service.upscale(file, settings, file.parent / "made", Stop())


def test_it_makes_what_the_upscaler_makes(service: Service, file: Path) -> None:
    stages: list[str] = []

    def progress(stage: str, parts: Iterable[Any]) -> Iterable[Any]:
        stages.append(stage)
        return parts

    made = service.upscale(file, SETTINGS, file.parent / "made", Stop(), progress)
    assert made.after.name == "cat_x2.png" and made.size == (40, 48)
    assert stages == ["encoding", "sampling", "decoding"]
    alone = Upscaler(service.networks, SETTINGS)(Image.open(file))
    np.testing.assert_array_equal(np.asarray(Image.open(made.after)), np.asarray(alone))
    assert Image.open(made.before).size == (48, 40)


def broken(folder: Path, name: str) -> Path:
    path = folder / name
    if name == "notes.png":
        path.write_text("no picture\n")
    elif name == "cut.png":
        whole = folder / "whole.png"
        PHOTO.save(whole)
        path.write_bytes(whole.read_bytes()[:300])
    elif name == "bomb.png":  # a few bytes whose header says that they are 900 megapixels
        PHOTO.save(path)
        content = path.read_bytes()
        header = b"IHDR" + 2 * (30_000).to_bytes(4) + content[24:29]
        path.write_bytes(content[:12] + header + zlib.crc32(header).to_bytes(4) + content[33:])
    else:
        Image.new("RGB", {"dot.png": (1, 1), "large.png": (100, 60)}[name]).save(path)
    return path


@pytest.mark.parametrize(("name", "said"), [
    ("notes.png", "notes.png: cannot be read as a picture (its content is of no known type)"),
    ("cut.png", "cut.png: cannot be read as a picture (image file is truncated)"),
    ("dot.png", "dot.png: it is 1 x 1 pixels: each side must be 8 or more"),
    ("large.png", "large.png: it is 100 × 60 pixels, and this page takes up to 0.005 megapixels; "
                  "choose a smaller picture"),
    ("bomb.png", "bomb.png: it is 30000 × 30000 pixels, and this page takes up to 0.005 megapixels; "
                 "choose a smaller picture"),
])  # fmt: skip
def test_what_is_no_picture_for_it_is_refused_in_a_sentence(
    service: Service, tmp_path: Path, name: str, said: str
) -> None:
    with pytest.raises(UserError) as error:
        service.open(broken(tmp_path, name))
    assert str(error.value) == said
    with pytest.raises(UserError):
        finished(service, tmp_path / name)


def test_too_large_a_result_is_refused_with_a_factor_that_fits(service: Service, file: Path) -> None:
    with pytest.raises(UserError, match=r"192 × 160 pixels, .*; choose a Factor up to 3\.2$"):
        finished(service, file, UpscaleSettings(upscale=8))
    assert service.result_size((20, 24), 3.2) == (64, 77)


@pytest.mark.parametrize(("error", "said"), [
    (FieldError("steps", "is 0: give a number of 1 or more"), "Steps is 0: give a number of 1 or more"),
    (FieldError("start_t", "is -1: give a number of 0 or more"), "start_t is -1: give a number of 0 or more"),
    (NotEnoughMemoryError("not enough memory for a result of 9 x 9 pixels; choose smaller tiles"), NO_MEMORY),
    (MemoryError(), NO_MEMORY),
    (UserError("/tmp/x/a.png: is broken; replace or remove it"), "a.png: is broken"),
])  # fmt: skip
def test_errors_speak_of_labels_and_names(error: Exception, said: str) -> None:
    with pytest.raises(UserError) as told, friendly_errors(Path("/tmp/x/a.png")):
        raise error
    assert str(told.value) == said


def test_stopping_ends_it_within_a_step_and_the_next_one_runs(service: Service, file: Path) -> None:
    stop = Stop()
    calls: list[int] = []
    denoiser = service.networks.model.model.diffusion_model

    def stop_at_the_second_call(*_: object) -> None:
        calls.append(len(calls))
        if len(calls) == 2:
            stop.set()

    with denoiser.register_forward_pre_hook(stop_at_the_second_call), pytest.raises(StoppedError):
        service.upscale(file, UpscaleSettings(upscale=3, steps=50, batch=1), file.parent / "made", stop)
    assert len(calls) == 2  # of 50 or more
    assert finished(service, file).size == (40, 48)


def test_one_at_a_time_and_stopped_while_it_waits(service: Service, file: Path) -> None:
    denoiser = service.networks.model.model.diffusion_model
    started, go_on, running = threading.Event(), threading.Event(), []

    def hold(*_: object) -> None:
        running.append(threading.get_ident())
        started.set()
        assert go_on.wait(30)

    with denoiser.register_forward_pre_hook(hold), ThreadPoolExecutor(2) as pool:
        first = pool.submit(finished, service, file)
        assert started.wait(30)
        stop = Stop()
        second = pool.submit(service.upscale, file, SETTINGS, file.parent / "made", stop)
        stop.set()
        go_on.set()
        assert first.result(60).size == (40, 48)
        with pytest.raises(StoppedError):
            second.result(60)
    assert len(set(running)) == 1
