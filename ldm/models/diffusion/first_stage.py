"""Between pixels and scaled latents: one encode, one decode."""

from collections.abc import Sequence
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

    @torch.no_grad()
    def encode_each(self, pictures_pm1: Sequence[Tensor], rng: torch.Generator | None = None) -> list[Tensor]:
        """The same for several batches of one size, with the same draws; on a GPU in one pass of the encoder.

        On the CPU, where a picture alone fills all cores, one pass of two takes as long and more memory.
        """
        if not pictures_pm1[0].is_cuda:
            return [self.encode(each_pm1, rng) for each_pm1 in pictures_pm1]
        posterior = self.vae.encode(torch.cat(list(pictures_pm1)))
        return [self.scale_factor * part.sample(rng) for part in posterior.split([len(each) for each in pictures_pm1])]

    def decode(self, z: Tensor) -> Tensor:
        """Scaled latents (B, 4, h, w) -> pictures (B, 3, f h, f w), nominally in [-1, 1], not clamped.

        Differentiable in z; call it under `torch.no_grad()` where no gradient is wanted.
        """
        return self.vae.decode(z / self.scale_factor, recompute=self.recompute)
