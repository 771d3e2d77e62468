"""Every conversion between pictures in [0, 1], in [-1, 1] and of 8 bits. Names say the range: `_01`, `_pm1`, `_u8`."""

from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

Picture = TypeVar("Picture", Tensor, np.ndarray)


def to_pm1(img_01: Picture) -> Picture:
    """[0, 1] -> [-1, 1]; nothing is clamped."""
    return img_01 * 2 - 1


def from_pm1(img_pm1: Picture) -> Picture:
    """[-1, 1] -> [0, 1]; nothing is clamped."""
    return (img_pm1 + 1) / 2


def to_u8(img_01: Tensor) -> Tensor:
    """Nominally [0, 1] -> uint8, rounded to the nearest level and clamped."""
    return (img_01.clamp(0, 1) * 255).round().to(torch.uint8)


def rounded_01(img_01: Tensor) -> Tensor:
    """Nominally [0, 1] -> [0, 1] in steps of 1/255, as an 8-bit file would hold it."""
    return (img_01 * 255).round().clamp(0, 255) / 255


def truncated_u8(values: Tensor, low: float, high: float) -> Tensor:
    """[low, high] -> uint8, clamped and truncated as the published edge maps are; NaN becomes 0."""
    scaled = (values.detach().to(torch.float32) - low) * (255.0 / (high - low))
    return scaled.nan_to_num(nan=0.0, posinf=255.0, neginf=0.0).clamp_(0, 255).to(torch.uint8)
