"""Whole models at two sizes, and the least that a real Trainer needs to run them.

`tiny` is the size of the reference arrays (f = 8, four levels); `small` has the same parts in two levels, at f = 2 and
with a text tower, for tests that train.
"""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from reference.parity import CONFIG, SIDE, fill, noise
from torch import Tensor, nn
from torch.utils.data import DataLoader

from basicsr.data.pair_pool import Pair
from ldm.models.diffusion.ddpm import LatentDiffusionSRTextWT

TWO_LEVELS = {"channel_mult": [1, 2], "num_res_blocks": 1, "attention_resolutions": [2]}
SMALL = {
    "unet": {**CONFIG["unet"], **TWO_LEVELS, "context_dim": 32},
    "structure": {**CONFIG["structure"], **TWO_LEVELS},
    "first_stage": {**CONFIG["first_stage"], "ch_mult": [1, 2], "num_res_blocks": 1, "resolution": 16},
}
SMALL_TEXT: dict[str, Any] = {
    "target": "ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder",
    "params": {"arch": {"width": 32, "layers": 1, "heads": 2}, "max_length": 5},
}
NO_LOSS = {"target": "torch.nn.Identity"}


def stage1(size: str = "small", filled: bool = True, **params: Any) -> LatentDiffusionSRTextWT:
    """A model of that size with the reference weights (or its own initial ones), in training mode."""
    config = SMALL if size == "small" else CONFIG
    model = LatentDiffusionSRTextWT(
        **{
            "first_stage_config": {
                "target": "ldm.models.autoencoder.AutoencoderKL",
                "params": {"embed_dim": 4, "ddconfig": config["first_stage"], "lossconfig": NO_LOSS},
            },
            "cond_stage_config": SMALL_TEXT if size == "small" else {"target": "torch.nn.Identity"},
            "structcond_stage_config": {
                "target": "ldm.modules.diffusionmodules.openaimodel.EncoderUNetModelWT",
                "params": config["structure"],
            },
            "unet_config": {
                "target": "ldm.modules.diffusionmodules.openaimodel.UNetModelDualcondV2",
                "params": config["unet"],
            },
            **params,
        }
    )
    if filled:
        fill(model)
        if model.model_ema is not None:
            model.model_ema.reset(model.model)
    return model


def latents(size: str = "small") -> dict[str, Any]:
    """Tensors that `p_losses` takes beside the structure and the steps, x_start, cond, noise; and z_lq."""
    side, width = (8, 32) if size == "small" else (SIDE, CONFIG["unet"]["context_dim"])
    shape = (2, 4, side, side)
    return {
        "x_start": noise("gt", shape),
        "z_lq": noise("lq", shape),
        "cond": noise("ctx", (2, 7, width)),
        "noise": noise("eps", shape),
    }


def losses(model: LatentDiffusionSRTextWT, t: Tensor, size: str = "small") -> tuple[Tensor, dict[str, Tensor]]:
    """`p_losses` on the named inputs."""
    given = latents(size)
    structure = model.structcond_stage_model(given.pop("z_lq"), t)
    return model.p_losses(struct_cond=structure, t=t, t_ori=t, **given)


def pair(index: int = 0, batch: int = 2) -> Pair:
    """Pictures of 16 x 16 pixels for the small model: smooth truth with a hard edge, and its noisy copy."""
    rows = torch.linspace(-0.8, 0.8, 16)[None, None, :, None].expand(batch, 3, 16, 16)
    gt = torch.where(torch.arange(16) < 6 + index % 4, rows, -rows)
    lq = (gt + 0.2 * noise(f"pair{index}", (batch, 3, 16, 16))).clamp(-1, 1)
    return Pair(lq, gt.contiguous(), tuple(f"{index}-{i}.png" for i in range(batch)))


def loader(batches: list[Any]) -> DataLoader[Any]:
    """These batches, in this order."""
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]  # takes any sequence, asks for a Dataset


def gradients(model: nn.Module) -> list[Tensor]:
    """Of the trained parameters, of which each has one."""
    found = [p.grad for p in model.parameters() if p.requires_grad]
    assert found and not any(gradient is None for gradient in found)
    return [gradient for gradient in found if gradient is not None]


class Pairs(pl.LightningDataModule):
    """`count` pairs for training and one for validation, in the way of the real data module."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def train_dataloader(self) -> DataLoader[Any]:
        return loader([vars(pair(i)) for i in range(self.count)])

    def val_dataloader(self) -> DataLoader[Any]:
        return loader([vars(pair(99))])

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> Pair:
        return Pair(**{**batch, "paths": tuple(batch["paths"])})


def trainer(folder: Path, steps: int, **params: Any) -> pl.Trainer:
    """A real Trainer on the CPU that writes nothing unless asked."""
    defaults = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "num_sanity_val_steps": 0,
    }
    return pl.Trainer(default_root_dir=folder, max_steps=steps, **{**defaults, **params})
