"""JPEG compression as tensor operations, after Shin & Song (2017), JPEG-resistant Adversarial Images.

The lossy part of baseline JPEG with 4:2:0 chroma, on a whole batch and on any device; entropy coding loses nothing and
is left out. Against a file written by a library, the quantisation tables are not rounded to integers.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from basicsr.utils.colour import LUMA

# Tables K.1 and K.2 of ITU-T T.81. K.1 stands here with its columns as rows, so that its axes are exchanged against the
# standard: the published model was trained so, and the difference cannot be seen.
LUMA_TABLE = (
    (16, 12, 14, 14, 18, 24, 49, 72),
    (11, 12, 13, 17, 22, 35, 64, 92),
    (10, 14, 16, 22, 37, 55, 78, 95),
    (16, 19, 24, 29, 56, 64, 87, 98),
    (24, 26, 40, 51, 68, 81, 103, 112),
    (40, 58, 57, 87, 109, 104, 121, 100),
    (51, 60, 69, 80, 103, 113, 120, 103),
    (61, 55, 56, 62, 77, 92, 101, 99),
)
CHROMA_CORNER = ((17, 18, 24, 47), (18, 21, 26, 66), (24, 26, 56, 99), (47, 66, 99, 99))  # 99 elsewhere

# JFIF: Y = luma of ITU-R BT.601, Cb and Cr without their offset of 128.
RGB_TO_YCBCR = (LUMA, (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
YCBCR_TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))


def _dct_matrix() -> Tensor:
    """(64, 64): an 8x8 block, row after row => its orthonormal two-dimensional DCT-II."""
    n = torch.arange(8, dtype=torch.float64)
    dct = torch.cos((2 * n[None, :] + 1) * n[:, None] * math.pi / 16) / 2
    dct[0] /= math.sqrt(2)
    return torch.kron(dct, dct).float()


def _smooth_round(x: Tensor) -> Tensor:
    """Rounding with a gradient: the cubic of Shin & Song (2017) between the integers."""
    nearest = x.round()
    return nearest + (x - nearest) ** 3


class DiffJPEG(nn.Module):
    """Compress and decompress; nothing of it is in a state dict.

    Args:
        differentiable: round smoothly, so that a gradient passes.
    """

    dct: Tensor
    tables: Tensor
    to_ycbcr: Tensor
    to_rgb: Tensor

    def __init__(self, *, differentiable: bool) -> None:
        super().__init__()
        self.round = _smooth_round if differentiable else torch.round
        chroma = torch.full((8, 8), 99.0)
        chroma[:4, :4] = torch.tensor(CHROMA_CORNER)
        tables = torch.stack([torch.tensor(LUMA_TABLE, dtype=torch.float32), chroma]).flatten(1)
        self.register_buffer("tables", tables, persistent=False)  # (2, 64)
        self.register_buffer("dct", _dct_matrix(), persistent=False)
        self.register_buffer("to_ycbcr", torch.tensor(RGB_TO_YCBCR), persistent=False)
        self.register_buffer("to_rgb", torch.tensor(YCBCR_TO_RGB), persistent=False)

    def forward(self, img_01: Tensor, quality: Tensor | float) -> Tensor:
        """(B, 3, H, W) RGB in [0, 1], any size => the same after JPEG at `quality` (B,) or one number, 1 to 100."""
        height, width = img_01.shape[-2:]
        factor = self._table_factor(torch.as_tensor(quality, dtype=img_01.dtype, device=img_01.device))
        padded = F.pad(img_01 * 255, (0, -width % 16, 0, -height % 16)) if (height | width) % 16 else img_01 * 255
        luma, chroma = self._mix(padded, self.to_ycbcr).split((1, 2), dim=1)
        luma = self._quantised(luma - 128, self.tables[0], factor).add_(128)
        chroma = self._quantised(self._halved(chroma), self.tables[1], factor)
        chroma = F.interpolate(chroma, scale_factor=2, mode="nearest")
        rgb = self._mix(torch.cat([luma, chroma], dim=1), self.to_rgb)
        return rgb.div_(255).clamp_(0, 1)[..., :height, :width]

    @staticmethod
    def _table_factor(quality: Tensor) -> Tensor:
        """The Independent JPEG Group's scale of the tables. At 100 it is 0, so stop shortly before."""
        quality = quality.clamp(1, 99.5)
        return torch.where(quality < 50, 50 / quality, 2 - quality / 50)

    @staticmethod
    def _mix(img: Tensor, matrix: Tensor) -> Tensor:
        """(B, 3, H, W) => (B, 3, H, W), each pixel's channels times (3, 3)."""
        if img.device.type == "cpu":  # one by one: the same to the bit, and large pictures in a third of the time
            return torch.stack([matrix.to(img) @ pixels for pixels in img.flatten(2)]).view_as(img)
        return (matrix.to(img) @ img.flatten(2)).view_as(img)

    @staticmethod
    def _halved(img: Tensor) -> Tensor:
        """(B, C, H, W), even => the means of 2 x 2 pixels, summed row by row, as PyTorch's slower pooling does."""
        top, bottom = img[..., ::2, :], img[..., 1::2, :]
        total = top[..., ::2] + top[..., 1::2]
        return total.add_(bottom[..., ::2]).add_(bottom[..., 1::2]).div_(4)

    def _quantised(self, plane: Tensor, table: Tensor, factor: Tensor) -> Tensor:
        """(B, C, H, W) centred on 0, H and W multiples of 8: to frequencies, rounded to the table's steps, and back."""
        B, C, H, W = plane.shape
        dct = self.dct.to(plane)
        blocks = plane.view(B, C, H // 8, 8, W // 8, 8).transpose(3, 4).reshape(B, -1, 64)
        steps = factor.reshape(-1, 1, 1) * table.to(plane)  # (B or 1, 1, 64)
        blocks = self.round((blocks @ dct.T).div_(steps)).mul_(steps) @ dct
        return blocks.view(B, C, H // 8, W // 8, 8, 8).transpose(3, 4).reshape(B, C, H, W)
