"""Between pixels and scaled latents: one encode, one decode."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.models.autoencoder import AutoencoderKL


@dataclass(frozen=True)
class FirstStage:
    """An autoencoder and the factor that brings its latents to a standard deviation of about 1."""

    vae: AutoencoderKL
    scale_factor: float
    recompute: bool = False  # the decoder's activations in the backward pass, rather than keep them

    @torch.no_grad()
    def encode(self, x_pm1: Tensor, rng: torch.Generator | None = None) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1] -> a scaled sample of their posterior (B, 4, H/f, W/f), without gradient."""
        return self.scale_factor * self.vae.encode(x_pm1).sample(rng)

    def decode(self, z: Tensor) -> Tensor:
        """Scaled latents (B, 4, h, w) -> pictures (B, 3, f h, f w), nominally in [-1, 1], not clamped.

        Differentiable in z; call it under `torch.no_grad()` where no gradient is wanted.
        """
        return self.vae.decode(z / self.scale_factor, recompute=self.recompute)
