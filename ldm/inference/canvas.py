"""Canvases: pictures with the padding that the networks need."""

from collections.abc import Sequence

from torch import Tensor

from basicsr.utils.img_process_util import reflect_pad


def margins(size: Sequence[int], canvas: Sequence[int]) -> tuple[int, int]:
    """Rows above and columns left of a picture (height, width) in the middle of its canvas (height, width)."""
    top, left = (-(-(outer - inner) // 2) for outer, inner in zip(canvas, size, strict=True))
    return top, left


def padded(planes: Tensor, canvas: Sequence[int]) -> Tensor:
    """(B, C, h, w) -> (B, C, *canvas), the picture in the middle, mirrored beyond its borders."""
    return reflect_pad(planes, *margins(planes.shape[-2:], canvas))[..., : canvas[0], : canvas[1]]


def cropped(canvas: Tensor, size: Sequence[int]) -> Tensor:
    """The picture (B, C, *size) in the middle of a canvas (B, C, H, W)."""
    top, left = margins(size, canvas.shape[-2:])
    return canvas[..., top : top + size[0], left : left + size[1]]
