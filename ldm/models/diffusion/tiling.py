"""Aggregation sampling (StableSR, section 3.4): a denoiser for tiles becomes a denoiser for a canvas of any size."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from basicsr.utils.errors import UserError

# x_t (B, 4, h, w), original timesteps (B,) -> the network's output (B, 4, h, w)
Denoiser = Callable[[Tensor, Tensor], Tensor]
# The same with the LQ latent (B, 4, h, w) that belongs to x_t
StructuredDenoiser = Callable[[Tensor, Tensor, Tensor], Tensor]

T = TypeVar("T")


@dataclass(frozen=True)
class Tiling:
    """Square tiles: their side and least overlap in latent cells, and how many go through the network at once."""

    size: int
    overlap: int = 32
    batch: int = 1


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


def tile_windows(size: Sequence[int], tile: int, overlap: int) -> list[tuple[slice, slice]]:
    """Rows and columns of every tile of a canvas (height, width), row by row, each at most `tile` along a side.

    Raises:
        UserError: overlap is not at least 0 and below tile.
    """
    if not 0 <= overlap < tile:
        raise UserError(
            f"a tile overlap of {overlap} does not fit tiles of {tile} latent cells; choose 0 to {tile - 1}"
        )
    rows, columns = (
        [slice(start, start + min(tile, side)) for start in tile_starts(side, tile, overlap)] for side in size
    )
    return [(row, column) for row in rows for column in columns]


def chunks(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """`items` in runs of `size`, the last one perhaps shorter."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def tiled(denoise: StructuredDenoiser, z_lq: Tensor, tiling: Tiling) -> Denoiser:
    """A denoiser for canvases of z_lq's size (B, 4, H, W), made of one for tiles.

    At every step each tile is predicted on its own and the predictions are averaged with Gaussian weights. The layout
    and the tiles of z_lq are the same at every step and made once. `tiling.batch` tiles of every picture go through the
    network at once, tile by tile: (batch * B, 4, h, w).

    Raises:
        UserError: the overlap is not at least 0 and below the tiles' size.
    """
    height, width = z_lq.shape[-2:]
    windows = tile_windows((height, width), tiling.size, tiling.overlap)
    # Never in half precision: a corner's weight is 1e-11.
    weights = gaussian_weights(min(tiling.size, height), min(tiling.size, width)).to(z_lq.device, torch.float32)
    total = torch.zeros(height, width, device=z_lq.device)
    for rows, columns in windows:
        total[rows, columns] += weights

    def cut(canvas: Tensor, group: Sequence[tuple[slice, slice]]) -> Tensor:
        return torch.cat([canvas[..., rows, columns] for rows, columns in group])

    layout = [(group, cut(z_lq, group)) for group in chunks(windows, tiling.batch)]

    def denoise_canvas(x: Tensor, t: Tensor) -> Tensor:
        canvas = torch.zeros_like(x, dtype=torch.float32)
        for group, z in layout:
            output = weights * denoise(cut(x, group), t.repeat(len(group)), z)
            for (rows, columns), tile in zip(group, output.chunk(len(group)), strict=True):
                canvas[..., rows, columns] += tile
        return (canvas / total).to(x.dtype)

    return denoise_canvas
