"""What is behind the web page: refusals in a sentence, progress, stopping, one upscale at a time. Needs no Gradio."""

import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from reference.models import stage1

from basicsr.utils.errors import UserError
from ldm.inference.networks import Networks
from ldm.inference.pipeline import Upscaler
from ldm.inference.service import Job, Progress, Result, Service, StoppedError, sentence
from ldm.inference.settings import UpscaleSettings

SETTINGS = UpscaleSettings(upscale=2, steps=3)
PHOTO = Image.fromarray(skimage.data.chelsea()).crop((100, 60, 124, 80))  # 24 x 20 pixels


@pytest.fixture(scope="module")
def networks() -> Networks:
    torch.manual_seed(0)
    return Networks(stage1().eval().requires_grad_(False), None, 32, torch.device("cpu"))


@pytest.fixture
def service(networks: Networks, tmp_path: Path) -> Service:
    return Service(networks, tmp_path, max_pixels=5000)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    PHOTO.save(tmp_path / "cat.png")
    return tmp_path / "cat.png"


def finished(service: Service, file: Path, job: Job, settings: UpscaleSettings = SETTINGS) -> Result:
    *_, result = service.run(file, settings, job)
    assert isinstance(result, Result)
    return result


def test_it_makes_what_the_upscaler_makes(service: Service, file: Path) -> None:
    *progress, result = service.run(file, SETTINGS, Job())
    assert isinstance(result, Result) and all(isinstance(news, Progress) for news in progress)
    assert result.after.name == "cat_x2.png" and result.size == (40, 48)
    alone = Upscaler(service.networks, SETTINGS)(Image.open(file))
    np.testing.assert_array_equal(np.asarray(Image.open(result.after)), np.asarray(alone))
    assert Image.open(result.before).size == (48, 40)


def test_progress_counts_steps_and_knows_the_time_left() -> None:
    job, seen = Job(), []
    for _ in job.watch("sampling", range(3)):
        seen.append(job.progress)
    assert [(news.stage, news.done, news.total) for news in seen] == [("sampling", done, 3) for done in range(3)]
    assert seen[0].seconds_left is None and all(news.seconds_left >= 0 for news in seen[1:])
    assert job.progress == Progress("sampling", 3, 3, 0)


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
    ("notes.png", "notes.png cannot be read as a picture (its content is of no known type); choose another file"),
    ("cut.png", "cut.png cannot be read as a picture (image file is truncated); choose another file"),
    ("dot.png", "dot.png is 1 × 1 pixels: each side must be 8 or more"),
    ("large.png", "large.png is 100 × 60 pixels, and this page takes up to 0.005 megapixels; choose a smaller picture"),
    ("bomb.png", "bomb.png has far more pixels than fit; choose a smaller picture"),
])  # fmt: skip
def test_what_is_no_picture_for_it_is_refused_in_a_sentence(
    service: Service, tmp_path: Path, name: str, said: str
) -> None:
    with pytest.raises(UserError) as error:
        service.open(broken(tmp_path, name))
    assert str(error.value) == said
    with pytest.raises(UserError):
        list(service.run(tmp_path / name, SETTINGS, Job()))


def test_too_large_a_result_is_refused_with_a_factor_that_fits(service: Service, file: Path) -> None:
    with pytest.raises(UserError, match=r"192 × 160 pixels, .*; choose a Factor up to 3\.2$"):
        list(service.run(file, UpscaleSettings(upscale=8), Job()))
    assert service.result_size((20, 24), 3.2) == (64, 77)


def test_messages_speak_of_labels() -> None:
    message = "not enough memory for a result of 9 x 9 pixels (about 9 GB of 1 GB); choose a smaller --upscale, or …"
    assert sentence(message, Path("a.png")).endswith("choose a smaller Factor or a smaller picture")
    assert sentence("--steps is 0: give a number from 1 to inf", Path("a.png")).startswith("Steps is 0:")


def test_stopping_ends_it_within_a_step_and_the_next_one_runs(service: Service, file: Path) -> None:
    job, calls = Job(), []
    denoiser = service.networks.model.model.diffusion_model

    def stop_at_the_second_call(*_: object) -> None:
        calls.append(len(calls))
        if len(calls) == 2:
            job.stop()

    with denoiser.register_forward_pre_hook(stop_at_the_second_call), pytest.raises(StoppedError):
        list(service.run(file, UpscaleSettings(upscale=3, steps=50, batch=1), job))
    assert len(calls) == 2  # of 50 or more
    assert finished(service, file, Job()).size == (40, 48)


def test_one_at_a_time_first_come_first_served(service: Service, file: Path) -> None:
    denoiser = service.networks.model.model.diffusion_model
    started, go_on = threading.Event(), threading.Event()

    def hold(*_: object) -> None:
        started.set()
        assert go_on.wait(30)

    first = threading.Thread(target=finished, args=(service, file, Job()))
    with denoiser.register_forward_pre_hook(hold):
        first.start()
        assert started.wait(30)
        second, third = Job(), Job()
        runs = [service.run(file, SETTINGS, job) for job in (second, third)]
        assert [next(run) for run in runs] == [Progress("waiting", total=1), Progress("waiting", total=2)]
        second.stop()  # also while it waits
        with pytest.raises(StoppedError):
            next(runs[0])
        assert next(runs[1]) == Progress("waiting", total=1)
        go_on.set()
        *_, result = runs[1]
        assert isinstance(result, Result)
    first.join()


def test_an_upscale_that_nobody_watches_any_more_ends(service: Service, file: Path) -> None:
    run = service.run(file, UpscaleSettings(upscale=2, steps=1000), Job())
    next(run)
    run.close()
    assert finished(service, file, Job()).size == (40, 48)
