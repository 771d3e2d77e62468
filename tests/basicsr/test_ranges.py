"""Every conversion between [0, 1], [-1, 1] and 8 bits, and grey from colour."""

import cv2
import numpy as np
import torch

from basicsr.utils.canny import rgb_to_grey
from basicsr.utils.colour import LUMA, TORCHVISION_LUMA, luma
from basicsr.utils.diffjpeg import RGB_TO_YCBCR
from basicsr.utils.ranges import from_pm1, rounded_01, to_pm1, to_u8, truncated_u8


def test_there_and_back() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    img_01 = levels.double() / 255
    assert torch.equal(to_u8(img_01), levels) and torch.equal(to_u8(from_pm1(to_pm1(img_01))), levels)
    assert to_pm1(torch.tensor([0.0, 0.5, 1.0])).tolist() == [-1, 0, 1]
    assert to_pm1(np.array([0.0, 0.25])).tolist() == [-1, -0.5] and from_pm1(np.array([-1.0, 2.0])).tolist() == [0, 1.5]


def test_rounding_and_truncation() -> None:
    values = torch.tensor([-0.5, 0.1, 0.5, 1.7])  # 0.1 is 25.5 levels, 0.5 is 127.5: to the even one
    assert to_u8(values).tolist() == [0, 26, 128, 255]
    torch.testing.assert_close(rounded_01(values), torch.tensor([0.0, 26 / 255, 128 / 255, 1.0]))
    assert truncated_u8(values, 0, 1).tolist() == [0, 25, 127, 255]
    assert truncated_u8(torch.tensor([float("nan"), float("inf"), float("-inf"), 0.0]), -1, 1).tolist() == [
        0,
        255,
        0,
        127,
    ]


def test_grey_is_one_formula() -> None:
    rgb = torch.rand(2, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    want = 0.299 * rgb[:, 0] + 0.587 * rgb[:, 1] + 0.114 * rgb[:, 2]
    torch.testing.assert_close(luma(rgb)[:, 0], want)
    torch.testing.assert_close(luma(rgb[0])[0], want[0])
    torch.testing.assert_close(luma(rgb, TORCHVISION_LUMA)[:, 0], want - 0.0001 * rgb[:, 0])
    assert RGB_TO_YCBCR[0] == LUMA
    levels = to_u8(rgb)
    assert (rgb_to_grey(levels) - luma(levels.double())[:, 0]).abs().max() <= 0.5 + 1e-3
    assert cv2.cvtColor(np.full((1, 1, 3), (10, 200, 30), np.uint8), cv2.COLOR_RGB2GRAY).item() == round(
        0.299 * 10 + 0.587 * 200 + 0.114 * 30
    )
