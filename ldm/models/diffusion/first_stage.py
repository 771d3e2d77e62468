"""Between pixels and scaled latents: one encode, one decode."""

import torch
from torch import Tensor

from ldm.models.autoencoder import AutoencoderKL


@torch.no_grad()
def encode(
    first_stage: AutoencoderKL, image_pm1: Tensor, scale_factor: float, rng: torch.Generator | None = None
) -> Tensor:
    """Picture (B, 3, H, W) in [-1, 1] -> a sample of its posterior, scaled: (B, 4, H/f, W/f). No gradient is kept."""
    return scale_factor * first_stage.encode(image_pm1).sample(rng)


def decode(first_stage: AutoencoderKL, z: Tensor, scale_factor: float) -> Tensor:
    """Scaled latent (B, 4, h, w) -> picture (B, 3, f h, f w), nominally in [-1, 1], not clamped.

    Differentiable in z; call it under `torch.no_grad()` where no gradient is wanted.
    """
    return first_stage.decode(z / scale_factor)
