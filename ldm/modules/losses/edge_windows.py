"""Random windows for the edge loss: a part of the frame, decoded alone, is cheap."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d

from basicsr.utils.errors import FieldError

# The part of the draws that edges do not steer: it bounds the importance weights by 1 / FLOOR.
FLOOR = 0.25


@dataclass(frozen=True)
class Windows:
    """A square window for each of B samples, in latent cells; `importance` (B,) multiplies their losses."""

    side: int
    corners: tuple[tuple[int, int], ...]  # top and left
    importance: Tensor | None = None

    def cut(self, images: Tensor, pixels: int = 1) -> Tensor:
        """The windows of latents (B, C, h, w), or of pictures of `pixels` pixels a cell: (B, C, side, side)."""
        side = self.side * pixels
        return torch.stack(
            [
                image[:, top * pixels : top * pixels + side, left * pixels : left * pixels + side]
                for image, (top, left) in zip(images, self.corners, strict=True)
            ]
        )


def draw_uniform(latents: Tensor, side: int, rng: torch.Generator | None = None) -> Windows:
    """A window of side x side cells in each of the latents (B, C, h, w), all places alike.

    Raises:
        FieldError: the latents are smaller.
    """
    rows, columns = _places(latents, side)
    device = latents.device if rng is None else rng.device
    drawn = torch.randint(rows * columns, (len(latents),), generator=rng, device=device)
    return Windows(side, _corners(drawn, columns))


def draw_by_edges(latents: Tensor, edges: Tensor, side: int, rng: torch.Generator | None = None) -> Windows:
    """The same, in proportion to the edges (B, 1, f h, f w) in a window, weighted so that expectations are as before.

    Of n windows, the one with the share d of edge pixels is drawn with q = (1 - FLOOR) d / sum(d) + FLOOR / n and
    weighs 1 / (n q); where there are no edges at all, q = 1 / n.
    """
    rows, columns = _places(latents, side)
    cells = adaptive_avg_pool2d(edges.float(), (latents.shape[-2], latents.shape[-1]))
    density = avg_pool2d(cells, side, stride=1).flatten(1)
    count = rows * columns
    total = density.sum(dim=1, keepdim=True)
    steered = torch.where(total > 0, density / total.clamp(min=1e-12), 1 / count)
    q = (1 - FLOOR) * steered + FLOOR / count
    drawn = torch.multinomial(q if rng is None else q.to(rng.device), 1, generator=rng).to(q.device)
    return Windows(side, _corners(drawn[:, 0], columns), 1 / (count * q.gather(1, drawn)[:, 0]))


def _places(latents: Tensor, side: int) -> tuple[int, int]:
    height, width = latents.shape[-2:]
    if side > min(height, width):
        raise FieldError(
            "edge_crop",
            f"is {side} cells and the latents are {height} x {width}: give at most {min(height, width)}, or null for "
            "the whole frame",
        )
    return height - side + 1, width - side + 1


def _corners(drawn: Tensor, columns: int) -> tuple[tuple[int, int], ...]:
    return tuple(divmod(place, columns) for place in drawn.tolist())
