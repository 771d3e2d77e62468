"""Aggregation sampling (StableSR, section 3.4): a denoiser for tiles becomes a denoiser for a canvas of any size."""

from collections.abc import Callable

import torch
from torch import Tensor

from basicsr.utils.errors import UserError

# x_t (B, 4, h, w), original timesteps (B,) -> the network's output (B, 4, h, w)
Denoiser = Callable[[Tensor, Tensor], Tensor]
# The same with the LQ latent (B, 4, h, w) that belongs to x_t
StructuredDenoiser = Callable[[Tensor, Tensor, Tensor], Tensor]


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin along an axis; the last one is moved inside, so that it overlaps its neighbour more."""
    if length <= tile:
        return [0]
    stride = tile - overlap
    return [*range(0, length - tile, stride), length - tile]


def gaussian_weights(height: int, width: int) -> Tensor:
    """Weights (height, width), float64: a Gaussian of variance 0.01 of the squared side.

    The centres (width - 1) / 2 and height / 2 differ by half a cell between the axes, as published.
    """

    def bell(side: int, centre: float) -> Tensor:
        position = (torch.arange(side, dtype=torch.float64) - centre) / side
        return torch.exp(-position.square() / (2 * 0.01))

    return bell(height, height / 2)[:, None] * bell(width, (width - 1) / 2)


def tiled(denoise: StructuredDenoiser, z_lq: Tensor, tile_size: int, overlap: int) -> Denoiser:
    """A denoiser for canvases of z_lq's size (B, 4, H, W), made of one for tiles of `tile_size` latent cells.

    At every step each tile is predicted on its own and the predictions are averaged with Gaussian weights.
    Raises UserError unless 0 <= overlap < tile_size.
    """
    if not 0 <= overlap < tile_size:
        raise UserError(f"a tile overlap of {overlap} does not fit tiles of {tile_size} latent cells; choose 0 to "
                        f"{tile_size - 1}")
    height, width = z_lq.shape[-2:]
    tile_h, tile_w = min(tile_size, height), min(tile_size, width)
    windows = [(slice(y, y + tile_h), slice(x, x + tile_w))
               for y in tile_starts(height, tile_h, overlap) for x in tile_starts(width, tile_w, overlap)]
    # Never in half precision: a corner's weight is 1e-11.
    weights = gaussian_weights(tile_h, tile_w).to(z_lq.device, torch.float32)
    total = torch.zeros(height, width, device=z_lq.device)
    for rows, columns in windows:
        total[rows, columns] += weights

    def denoise_canvas(x: Tensor, t: Tensor) -> Tensor:
        canvas = torch.zeros_like(x, dtype=torch.float32)
        for rows, columns in windows:
            canvas[..., rows, columns] += weights * denoise(x[..., rows, columns], t, z_lq[..., rows, columns])
        return (canvas / total).to(x.dtype)

    return denoise_canvas
