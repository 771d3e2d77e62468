"""Edges as a map that weights, and image gradients that a loss can be made of. Pictures are in [-1, 1]."""

import torch
from torch import Tensor
from torch.nn.functional import conv2d, max_pool2d, pad

from basicsr.utils.edge_utils import EdgeMapGenerator

# Each gives 1 at a step from black to white: what is then clamped to 1 is a corner's.
_SOBEL_X = ((1, 0, -1), (2, 0, -2), (1, 0, -1))
_LAPLACIAN = ((0, 1, 0), (1, -4, 1), (0, 1, 0))
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as OpenCV's grey


def _filtered(images: Tensor, kernel: Tensor) -> Tensor:
    """Every channel of (B, C, H, W) correlated with a 3 x 3 kernel, the border repeated; the size stays."""
    flat = images.flatten(0, 1)[:, None]
    return conv2d(pad(flat, (1, 1, 1, 1), mode="replicate"), kernel[None, None]).reshape(images.shape)


def image_gradients(images: Tensor) -> tuple[Tensor, Tensor]:
    """Horizontal and vertical Sobel derivatives of each channel, scaled so that a step by 1 between pixels gives 1."""
    sobel_x = torch.tensor(_SOBEL_X, dtype=images.dtype, device=images.device) / 4
    return _filtered(images, sobel_x), _filtered(images, sobel_x.T)


def edges_01(operator: str, images_pm1: Tensor, generator: EdgeMapGenerator) -> Tensor:
    """Edges of (B, 3, H, W), clamped to [-1, 1], as (B, 1, H, W) in [0, 1].

    canny: `generator`'s, 0 or 1. Of the grey picture in [0, 1]: sobel, min(1, sqrt(S_x^2 + S_y^2)); laplacian,
    min(1, |the four neighbours - 4 times the pixel|). uniform: 1 everywhere. Without gradient where the caller keeps
    none.
    """
    if operator == "uniform":
        return torch.ones_like(images_pm1[:, :1])
    if operator == "canny":
        return generator.edges_01(images_pm1)
    luma = images_pm1.new_tensor(_LUMA)[:, None, None]
    grey_01 = ((images_pm1.clamp(-1, 1) + 1) / 2 * luma).sum(dim=1, keepdim=True)
    if operator == "sobel":
        return torch.hypot(*image_gradients(grey_01)).clamp(max=1)
    laplacian = torch.tensor(_LAPLACIAN, dtype=grey_01.dtype, device=grey_01.device)
    return _filtered(grey_01, laplacian).abs().clamp(max=1)


def dilated(edges: Tensor, radius: int) -> Tensor:
    """The maximum over the (2 radius + 1)^2 pixels around each; beyond the border there is nothing."""
    return max_pool2d(edges, 2 * radius + 1, stride=1, padding=radius) if radius else edges
