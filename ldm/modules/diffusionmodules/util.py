"""Small pieces that the U-Net, the time-aware encoder and the autoencoder share."""

import math

import torch
from torch import Tensor, nn

from basicsr.utils.errors import UserError


def timestep_embedding(timesteps: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """Sinusoidal embedding of timesteps (B,) as (B, dim): cosines first, then sines (Vaswani et al. 2017, section 3.5).

    Always computed in float32: half precision cannot tell neighbouring timesteps apart. An odd `dim` ends in a zero.
    """
    half = dim // 2
    frequencies = torch.exp(-math.log(max_period) / half * torch.arange(half, device=timesteps.device))
    angles = timesteps[:, None].float() * frequencies
    embedding = torch.cat([angles.cos(), angles.sin()], dim=1)
    return nn.functional.pad(embedding, (0, dim % 2))


def group_norm(channels: int, eps: float) -> nn.GroupNorm:
    """The 32-group affine GroupNorm that all of Stable Diffusion uses; `channels` must be a multiple of 32."""
    if channels % 32:
        raise UserError(f"{channels} channels cannot be normalised in 32 groups; choose multiples of 32 as widths")
    return nn.GroupNorm(32, channels, eps=eps)


def regroup(network: nn.Module, groups: int) -> None:
    """Give every GroupNorm of `network` another number of groups; no parameter changes its shape.

    A channel that is a group of its own loses its mean, which is the brightness of a picture: narrow networks need
    fewer groups than the 32 of published ones. Raises UserError where a width cannot be divided so.
    """
    for module in network.modules():
        if isinstance(module, nn.GroupNorm):
            if groups < 1 or module.num_channels % groups:
                raise UserError(f"norm_groups: {groups} does not divide {module.num_channels} channels; use 32 or 8")
            module.num_groups = groups


def zero_init(module: nn.Module) -> nn.Module:
    """Set a layer's parameters to zero, so that the residual branch it ends starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module
