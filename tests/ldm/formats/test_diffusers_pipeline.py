"""The community pipeline for diffusers against our own upscaler: run with -m diffusers."""

from pathlib import Path
from typing import Any

import pytest
import skimage.data
import torch
from PIL import Image
from tiny_run import ROOT, export_tiny_diffusers

from basicsr.utils.errors import UserError
from basicsr.utils.rng import torch_rng
from ldm.inference import Upscaler
from ldm.inference.settings import UpscaleSettings

pytestmark = pytest.mark.diffusers
PIPELINE = ROOT / "examples/diffusers/stablesr_pipeline.py"
PHOTO_01 = torch.from_numpy(skimage.data.chelsea()[60:76, 100:112].copy()).permute(2, 0, 1) / 255  # no frame's shape


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole tiny model in diffusers' form."""
    return export_tiny_diffusers(tmp_path_factory.mktemp("pipeline"))[0]


def loaded(folder: Path) -> Any:
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=str(PIPELINE), trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipe(folder: Path) -> Any:
    pipe = loaded(folder)
    pipe.load_structure(folder)
    return pipe


@pytest.mark.parametrize(
    "options",
    [
        {"colorfix": "wavelet"},
        {"prompt": "a sharp cat", "negative_prompt": "blur", "guidance_scale": 3.0, "colorfix": "none"},
    ],
)
def test_a_result_equals_that_of_our_own_sampler(folder: Path, pipe: Any, options: dict[str, Any]) -> None:
    settings = UpscaleSettings(2, 4, "ddpm", seed=7, tile="none", **options)
    ours = Upscaler.from_pretrained(folder, settings=settings, device="cpu")(PHOTO_01)
    rng = torch_rng("cpu", "upscale", 7)
    theirs = pipe(PHOTO_01, upscale=2, num_inference_steps=4, generator=rng, **options).images[0]
    assert isinstance(ours, torch.Tensor) and ours.shape == theirs.shape == (3, 32, 24)
    assert float((ours - theirs).abs().max()) <= 1e-5
    assert float(ours.std()) > 0.05  # not all one colour


def test_other_schedulers_and_kinds_of_pictures(pipe: Any) -> None:
    from diffusers import DPMSolverMultistepScheduler

    scheduler, pipe.scheduler = pipe.scheduler, DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    try:
        image = Image.fromarray(skimage.data.chelsea()[60:90, 100:140]).convert("RGBA")
        large = pipe(image, upscale=1.5, num_inference_steps=3, generator=torch.Generator().manual_seed(1)).images[0]
    finally:
        pipe.scheduler = scheduler
    assert large.size == (60, 45) and large.mode == "RGBA"


def test_what_is_missing_is_told(folder: Path, tmp_path: Path) -> None:
    plain = loaded(folder)
    with pytest.raises(UserError, match=r"call load_structure\(FOLDER\) first"):
        plain(PHOTO_01)
    with pytest.raises(UserError, match="has no stablesr/model.safetensors with a config"):
        plain.load_structure(tmp_path)


def test_it_is_short() -> None:
    assert len(PIPELINE.read_text().splitlines()) < 200
