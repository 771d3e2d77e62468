"""The autoencoder in tiles: memory for one tile, whatever the size of the picture."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ldm.models.autoencoder import AutoencoderKL, AutoencoderKLResi
from ldm.models.diffusion.tiling import tile_windows
from ldm.modules.distributions.distributions import DiagonalGaussianDistribution

Window = tuple[slice, slice]  # rows and columns
# What is done (its name) and its parts => the same parts, perhaps with a progress bar
Progress = Callable[[str, Iterable[Any]], Iterable[Any]]


def no_progress(_name: str, parts: Iterable[Any]) -> Iterable[Any]:
    """No progress bar."""
    return parts


def feather(height: int, width: int, overlap: int) -> Tensor:
    """Weights (height, width) that rise like a raised cosine over the `overlap` next to each border and are 1 inside.

    Never 0: cells at the border of the canvas have no other tile.
    """

    def profile(side: int) -> Tensor:
        cell = torch.arange(side) + 0.5
        to_border = torch.minimum(cell, side - cell) / max(overlap, 1)
        return torch.sin(0.5 * torch.pi * to_border.clamp(max=1)).square()

    return profile(height)[:, None] * profile(width)


@dataclass(frozen=True)
class TiledAutoencoder:
    """Pictures to scaled latents and back, one picture at a time; both live on the CPU, only tiles go to the device.

    Tiles overlap, and neighbours fade into each other over the whole overlap. Nothing but the canvases grows with the
    picture, so that none has to be split in pixels first.

    cfw: decodes with the features that its encoder sees in the LQ picture, weighted by `cfw_w`, where it is given.
    tile, overlap: in latent cells; no tile means the whole picture at once.
    """

    first_stage: AutoencoderKL
    cfw: AutoencoderKLResi | None
    scale_factor: float
    device: torch.device
    tile: int | None
    overlap: int
    cfw_w: float = 1.0

    def encode(self, image_pm1: Tensor, rng: torch.Generator, progress: Progress = no_progress) -> Tensor:
        """(1, 3, H, W) -> a sample of the posterior, scaled: (1, 4, H / f, W / f). The tiles' moments are blended."""
        f = self.first_stage.config.downsampling

        def moments(window: Window) -> Tensor:
            posterior = self.first_stage.encode(image_pm1[(..., *_scaled(window, f))].to(self.device))
            return torch.cat([posterior.mean, posterior.logvar], dim=1)

        size = (image_pm1.shape[-2] // f, image_pm1.shape[-1] // f)
        blended = self._blend(moments, size, 1, lambda parts: progress("encoding", parts))
        return self.scale_factor * DiagonalGaussianDistribution(blended).sample(rng)

    def decode(self, z: Tensor, lq_pm1: Tensor, progress: Progress = no_progress) -> Tensor:
        """Scaled latents (1, 4, h, w) and the LQ picture that they belong to -> (1, 3, f h, f w), not clamped."""
        f = self.first_stage.config.downsampling

        def pixels(window: Window) -> Tensor:
            cells = z[(..., *window)].to(self.device) / self.scale_factor
            if self.cfw is None:
                return self.first_stage.decode(cells)
            # Encoded again tile by tile: a canvas of features would be a hundred times the picture.
            _, features = self.cfw.encode(lq_pm1[(..., *_scaled(window, f))].to(self.device))
            return self.cfw.decode(cells, features, self.cfw_w)

        return self._blend(pixels, (z.shape[-2], z.shape[-1]), f, lambda parts: progress("decoding", parts))

    @torch.no_grad()
    def _blend(
        self,
        tile_of: Callable[[Window], Tensor],
        size: tuple[int, int],
        factor: int,
        progress: Callable[[Iterable[Window]], Iterable[Window]],
    ) -> Tensor:
        """What `tile_of` makes of windows of a latent canvas (h, w), `factor` times as large, put together."""
        tile = self.tile or max(size)
        windows = tile_windows(size, tile, min(self.overlap, tile - 1))
        if len(windows) == 1:
            return tile_of(windows[0]).float().cpu()
        canvas, total = torch.zeros(0), torch.zeros(size[0] * factor, size[1] * factor)
        weights = feather(min(tile, size[0]) * factor, min(tile, size[1]) * factor, self.overlap * factor)
        for window in progress(windows):
            part, place = tile_of(window).float().cpu(), _scaled(window, factor)
            if not len(canvas):
                canvas = torch.zeros(1, part.shape[1], *total.shape)
            canvas[(..., *place)] += weights * part
            total[place] += weights
        return canvas.div_(total)


def _scaled(window: Window, factor: int) -> Window:
    """The window of a canvas `factor` times as large."""
    rows, columns = (slice(side.start * factor, side.stop * factor) for side in window)
    return rows, columns
