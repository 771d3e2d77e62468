"""Spatially adaptive normalisation (Park et al. 2019), by which the structure features steer the frozen U-Net."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from basicsr.utils.errors import UserError
from ldm.modules.diffusionmodules.util import group_norm

HIDDEN_CHANNELS = 128


class SPADE(nn.Module):
    """norm(x) * (1 + gamma) + beta, with gamma and beta convolved from a structure feature (StableSR, equation 3).

    x is (k B, C, h, w); the feature (B, S, h, w) is looked up in `struct_cond` under x's width, `str(w)`. Where k is
    not 1, as under guidance, gamma and beta are the same for each B of x and computed once.
    """

    def __init__(self, channels: int, structure_channels: int) -> None:
        super().__init__()
        self.param_free_norm = group_norm(channels, eps=1e-5)
        self.mlp_shared = nn.Sequential(nn.Conv2d(structure_channels, HIDDEN_CHANNELS, 3, padding=1), nn.ReLU())
        self.mlp_gamma = nn.Conv2d(HIDDEN_CHANNELS, channels, 3, padding=1)
        self.mlp_beta = nn.Conv2d(HIDDEN_CHANNELS, channels, 3, padding=1)

    def forward(self, x: Tensor, struct_cond: Mapping[str, Tensor]) -> Tensor:
        width = str(x.shape[-1])
        if width not in struct_cond:
            raise UserError(
                f"no structure feature of width {width}, only {', '.join(struct_cond)}; the latent's sides "
                "must be multiples of 8 and the time-aware encoder must halve as often as the U-Net"
            )
        hidden = self.mlp_shared(struct_cond[width])
        if torch.is_grad_enabled() and not x.requires_grad:
            # The first SPADE's, below which nothing is trained. PyTorch's group norm on the CPU crashes in the backward
            # pass of a channels_last input that takes no gradient (2.13).
            x = x.contiguous()
        gamma, beta = self.mlp_gamma(hidden), self.mlp_beta(hidden)
        groups = self.param_free_norm(x).unflatten(0, (-1, len(hidden)))
        return (groups * (1 + gamma) + beta).flatten(0, 1)
