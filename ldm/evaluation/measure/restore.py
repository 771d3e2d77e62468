"""From a checkpoint to restored pictures: the one place where an evaluation touches the model."""

import torch
from torch import Tensor

from basicsr.utils.errors import UserError
from ldm.evaluation.measure.runs import Checkpoint, TrainedRun, read_checkpoint
from ldm.inference.networks import Networks
from ldm.inference.picture import Picture
from ldm.inference.pipeline import Upscaler
from ldm.inference.settings import Sampler, UpscaleSettings
from ldm.models.build import build_model
from ldm.models.diffusion.ddpm import LatentDiffusionSRTextWT
from ldm.models.diffusion.guidance import Guidance
from ldm.models.diffusion.sampling import Sampling


def load_networks(run: TrainedRun, checkpoint: Checkpoint, device: torch.device) -> Networks:
    """The run's model with a checkpoint's weights, in evaluation mode.

    Raises:
        UserError: the file does not fit the config, or is another one than when it was selected.
    """
    model: LatentDiffusionSRTextWT = build_model(run.config, ckpt=checkpoint.path)
    if read_checkpoint(checkpoint.path).identity != checkpoint.identity:
        raise UserError(f"{checkpoint.path} was written anew while it was read: run the same command again")
    frame = run.config.get("degradation.gt_size") or model.first_stage_model.config.resolution
    return Networks(model.eval().requires_grad_(False).to(device), None, frame, device)


def restore(networks: Networks, lq_01: Tensor, steps: int, seed: int, sampler: Sampler = "ddpm") -> Tensor:
    """One picture of any size, in tiles of the size that the model was trained at.

    Args:
        lq_01: RGB (3, H, W) in [0, 1], at the size of the result.
        steps, sampler: of the diffusion process: "ddpm" or "ddim".
        seed: decides all noise.

    Returns:
        RGB (3, H, W) in [0, 1], on the CPU; its colours are the model's own, not corrected.
    """
    settings = UpscaleSettings(upscale=1, steps=steps, sampler=sampler, seed=seed, colorfix="none", batch=4)
    return Upscaler(networks, settings).upscale([Picture(lq_01)])[0].rgb_01


@torch.no_grad()
def sample_frames(
    model: LatentDiffusionSRTextWT, lq_pm1: Tensor, steps: int, rng: torch.Generator, sampler: str = "ddim"
) -> Tensor:
    """LQ frames (B, 3, H, W) in [-1, 1], of a size that the model trains on -> restored ones, clamped to [-1, 1]."""
    with model.ema_scope():
        z_lq = model.first_stage.encode(lq_pm1, rng)
        guidance = Guidance(model.context(len(z_lq)))
        z = model.sample(z_lq, guidance, Sampling(steps, sampler), noise=model.noise(rng))
        return model.decode(z).clamp(-1, 1)
