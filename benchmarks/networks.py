"""Networks of three sizes with random weights that cost as much as trained ones, and the pictures that they are given.

The weights lie in a checkpoint in the work folder, which all processes of a measurement read: both sides have the same.
"""

import mmap
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from basicsr.data.pair_pool import Pair
from basicsr.utils.files import whole_file
from basicsr.utils.rng import numpy_rng, torch_rng
from benchmarks.canny_exactness import cut_out, photographs
from benchmarks.canny_speed import photograph_batch
from benchmarks.case import Case
from ldm.config import Config, load_config
from ldm.models.build import build_model
from ldm.models.diffusion.ddpm import LatentDiffusionSRTextWT

ROOT = Path(__file__).parents[1]
LEARNING_RATE = 1e-5
WORK = Path(tempfile.gettempdir()) / "stablesr-edge-benchmarks"
CONFIGS = {
    "full": "configs/stableSRNew/v2-finetune_text_T_512_edge_800.yaml",
    "small": "configs/demo/edge_cpu.yaml",
    "tiny": "configs/demo/edge_cpu.yaml",
}
# Two levels of one block each, with attention at both.
TINY = [
    "model.params.unet_config.params.channel_mult=[1,1]",
    "model.params.unet_config.params.attention_resolutions=[1,2]",
    "model.params.structcond_stage_config.params.channel_mult=[1,1]",
    "model.params.structcond_stage_config.params.attention_resolutions=[1,2]",
    "model.params.first_stage_config.params.ddconfig.ch_mult=[1,1]",
    "model.params.first_stage_config.params.ddconfig.resolution=32",
    "degradation.gt_size=32",
    "data.params.train.params.crop_size=32",
    "data.params.train.params.gt_size=32",
]


def config_of(size: str, *overrides: str) -> Config:
    """A size's training config, random weights, without the edge loss unless `overrides` ask for it."""
    own = [
        "model.params.ckpt_path=null",
        "model.params.first_stage_config.params.ckpt_path=null",
        "model.params.edge_loss_weight=0",
        "model.params.edge_decoder_checkpoint=false",
        "model.params.edge_grad_ratio_every=0",  # seldom, and at the first step, which is counted
    ]
    return load_config([ROOT / CONFIGS[size]], [*own, *(TINY if size == "tiny" else []), *overrides])


def weights_file(size: str, work: str | Path) -> Path:
    """The checkpoint of a size, written where it is not there yet (some gigabytes for the full one)."""
    path = Path(work) / f"{size}.ckpt"
    if not path.is_file():
        with torch.device("meta"):
            shapes = build_model(config_of(size)).state_dict()
        # Without the schedule, which is the config's. Filled in the file, which may be larger than free memory.
        state = {name: torch.empty(value.shape) for name, value in shapes.items() if "." in name}
        with whole_file(path) as draft:
            with torch.serialization.skip_data():
                torch.save({"state_dict": state, "global_step": 0}, draft)
            with torch.serialization.set_default_mmap_options(mmap.MAP_SHARED):
                filled = torch.load(draft, mmap=True, weights_only=True)["state_dict"]
            for name, values in filled.items():
                fill(name, values)
    return path


def model_of(case: Case, *overrides: str) -> LatentDiffusionSRTextWT:
    """The model in training mode with the work folder's weights."""
    weights = weights_file(case.size, case.work)
    model: LatentDiffusionSRTextWT = build_model(
        config_of(case.size, f"model.params.ckpt_path={weights}", *overrides), learning_rate=LEARNING_RATE
    )
    return model.to(case.device)


def fill(name: str, weights: Tensor) -> None:
    """At random, so that signals neither grow nor fade, also in layers that training begins at zero."""
    if weights.ndim < 2:
        weights.fill_(float(name.endswith("weight")))
    else:
        bound = (3 * len(weights) / weights.numel()) ** 0.5
        weights.uniform_(-bound, bound, generator=torch_rng("cpu", "benchmark", name))


def pair_of(batch: int, pixels: int, device: str) -> Pair:
    """Photographs, and the same with noise in place of a degradation."""
    gt_pm1 = photograph_batch(batch, pixels, device)
    noise = torch.randn(gt_pm1.shape, generator=torch_rng("cpu", "benchmark pair")).to(device)
    return Pair((gt_pm1 + 0.1 * noise).clamp(-1, 1), gt_pm1, ("photograph",) * batch)


def latents_of(batch: int, cells: int, device: str) -> Tensor:
    """(B, 4, cells, cells), standard-normal."""
    return torch.randn(batch, 4, cells, cells, generator=torch_rng("cpu", "benchmark latents")).to(device)


def picture_folder(size: str, work: str | Path) -> Path:
    """Photographs as data sets have them, PNG and JPEG by turns: 2040 x 1356 pixels, or few for tiny networks."""
    height, width = (48, 64) if size == "tiny" else (1356, 2040)
    folder = Path(work) / f"pictures {width} x {height}"
    if not folder.is_dir():
        draft = folder.with_name(f".{folder.name}")
        draft.mkdir(parents=True, exist_ok=True)
        for index, photo in enumerate(photographs()[:8]):
            rng = numpy_rng("benchmark pictures", index)
            pixels: np.ndarray = cut_out(photo, height, width, rng)
            Image.fromarray(pixels).save(draft / f"{index}.{('png', 'jpg')[index % 2]}", quality=95)
        draft.rename(folder)
    return folder
