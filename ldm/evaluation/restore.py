"""From a checkpoint to restored pictures: the one place where an evaluation touches the model."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from basicsr.utils.errors import UserError
from basicsr.utils.rng import torch_rng
from ldm.evaluation.runs import Checkpoint, Run, read_checkpoint
from ldm.models.diffusion import first_stage
from ldm.models.diffusion.ddpm import LatentDiffusionSRTextWT
from ldm.util import instantiate_from_config


def load_model(run: Run, checkpoint: Checkpoint, device: torch.device) -> LatentDiffusionSRTextWT:
    """The run's model with a checkpoint's weights, in evaluation mode.

    Raises:
        UserError: the file does not fit the config, or is another one than when it was selected.
    """
    params: dict[str, Any] = {**run.config.get("model.params"), "ckpt_path": str(checkpoint.path), "ignore_keys": []}
    first = params["first_stage_config"]
    without_weights = {**first, "params": {**(first.get("params") or {}), "ckpt_path": None}}
    model = instantiate_from_config(
        {"target": run.config.get("model.target"), "params": {**params, "first_stage_config": without_weights}}
    )
    if read_checkpoint(checkpoint.path).identity != checkpoint.identity:
        raise UserError(f"{checkpoint.path} was written anew while it was read: run the same command again")
    return model.eval().requires_grad_(False).to(device)


def restore(model: LatentDiffusionSRTextWT, lq_01: Tensor, steps: int, seed: int, sampler: str = "ddpm") -> Tensor:
    """One picture, the whole frame at once.

    Args:
        lq_01: RGB (3, H, W) in [0, 1], at the size of the result.
        steps, sampler: of the diffusion process: "ddpm" or "ddim".
        seed: decides all noise.

    Returns:
        RGB (3, H, W) in [0, 1], on the CPU.
    """
    height, width = lq_01.shape[-2:]
    multiple = frame_multiple(model)
    bottom, right = -height % multiple, -width % multiple
    padded = F.pad(lq_01[None], (0, right, 0, bottom), mode="replicate")
    sr_pm1 = sample_frames(model, padded.to(model.device) * 2 - 1, steps, torch_rng(model.device, seed), sampler)
    return (sr_pm1[0, :, :height, :width].float().cpu() + 1).div(2).clamp(0, 1)


@torch.no_grad()
def sample_frames(
    model: LatentDiffusionSRTextWT, lq_pm1: Tensor, steps: int, rng: torch.Generator, sampler: str = "ddim"
) -> Tensor:
    """LQ frames (B, 3, H, W) in [-1, 1], sides multiples of `frame_multiple` -> restored ones, clamped to [-1, 1]."""
    with model.ema_scope():
        z_lq = first_stage.encode(model.first_stage_model, lq_pm1, model.scale_factor, rng)
        context = model.context(len(z_lq))
        z = model.sample(z_lq, context, steps=steps, sampler=sampler, noise=model.noise(rng))
        return model.decode(z).clamp(-1, 1)


def frame_multiple(model: LatentDiffusionSRTextWT) -> int:
    """What a frame's sides must be multiples of, in pixels: every halving in the autoencoder and the U-Net is whole."""
    networks = (model.first_stage_model.encoder, model.model.diffusion_model)
    modules = (module for network in networks for module in network.modules())
    return 2 ** sum(isinstance(module, nn.Conv2d) and module.stride == (2, 2) for module in modules)
