"""How close two pictures are: PSNR, SSIM, MS-SSIM.

The protocol, since papers differ: both pictures are rounded to 8 bits, as they would be saved; `border` pixels are cut
off on every side, by habit as many as the scale factor; luma is BT.601's with studio swing, as in MATLAB's rgb2ycbcr
and in most papers on super-resolution, not rounded; a picture with three channels gets one MSE over all of them, and
the mean of the channels' SSIMs. All arithmetic is in float64. What a picture is too small for is NaN.
"""

import math

import cv2
import numpy as np
import torch.nn.functional as F
from torch import Tensor

from basicsr.utils import colour
from basicsr.utils.ranges import rounded_01

# Equal pictures have no noise and so no PSNR; this stands for it, so that means over pictures stay finite.
PSNR_CAP = 100.0
SSIM_WINDOW, SSIM_SIGMA = 11, 1.5  # pixels
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003, section 3.2, finest scale first


def as_8_bit(img_01: Tensor) -> Tensor:
    """Any float picture, nominally in [0, 1] -> float64 in [0, 1], clamped and rounded to multiples of 1/255."""
    return rounded_01(img_01.double())


def cropped(img: Tensor, border: int) -> Tensor:
    """(…, H, W) without `border` pixels on every side; at least one pixel is kept along each axis."""
    top, left = (min(border, (side - 1) // 2) for side in img.shape[-2:])
    return img[..., top : img.shape[-2] - top, left : img.shape[-1] - left]


def luma(rgb_01: Tensor) -> Tensor:
    """RGB (3, H, W) in [0, 1] -> Y (1, H, W) in [16/255, 235/255] (ITU-R BT.601 with studio swing)."""
    return (219 * colour.luma(rgb_01) + 16) / 255


def decibels(mse: float) -> float:
    """10 log10(1 / mse), for values whose peak is 1; at most `PSNR_CAP`."""
    return min(PSNR_CAP, -10 * math.log10(mse)) if mse > 0 else PSNR_CAP


def psnr(a_01: Tensor, b_01: Tensor) -> float:
    """Peak signal-to-noise ratio, 10 log10(1 / MSE): dB, 0 to `PSNR_CAP`, higher is closer.

    Args:
        a_01, b_01: (C, H, W) in [0, 1], of one shape. The same peak of 1 counts for luma, whose range is narrower.
    """
    return decibels(float((a_01.double() - b_01.double()).square().mean()))


def ssim(a_01: Tensor, b_01: Tensor) -> float:
    """Structural similarity (Wang et al., IEEE TIP 2004, equation 13): -1 to 1, higher is closer.

    As in the paper: Gaussian window of 11 pixels and sigma 1.5, K1 = 0.01, K2 = 0.03, population variances, the mean
    over those windows that lie inside the picture.

    Args:
        a_01, b_01: (C, H, W) in [0, 1], of one shape. NaN where a side is below 11 pixels.
    """
    if min(a_01.shape[-2:]) < SSIM_WINDOW:
        return math.nan
    luminance, contrast = _similarities(a_01, b_01)
    return float((luminance * contrast).mean())


def ms_ssim(a_01: Tensor, b_01: Tensor) -> float:
    """Multi-scale structural similarity (Wang et al., Asilomar 2003, equation 7): 0 to 1, higher is closer.

    Contrast and structure at five scales, each half the size of the one before (2 x 2 means), and luminance at the
    coarsest; terms below 0 count as 0.

    Args:
        a_01, b_01: (C, H, W) in [0, 1], of one shape. NaN where a side is below 176 pixels: the coarsest scale must
            hold a window of 11.
    """
    if min(a_01.shape[-2:]) < SSIM_WINDOW << (len(MS_SSIM_WEIGHTS) - 1):
        return math.nan
    a, b = a_01.double(), b_01.double()
    product = 1.0
    for weight in MS_SSIM_WEIGHTS[:-1]:
        _, contrast = _similarities(a, b)
        product *= math.pow(max(0.0, float(contrast.mean())), weight)
        a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
    return product * math.pow(max(0.0, ssim(a, b)), MS_SSIM_WEIGHTS[-1])


def _similarities(a_01: Tensor, b_01: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """SSIM's luminance term, and its contrast and structure terms in one, for each window: (H - 10, W - 10, C) each.

    Not torchmetrics' function: its mean takes in mirrored borders, and its two-dimensional window is 50 times slower.
    """
    a, b = (np.ascontiguousarray(img.double().permute(1, 2, 0).cpu()) for img in (a_01, b_01))
    inside = slice(SSIM_WINDOW // 2, -(SSIM_WINDOW // 2))

    def mean(x: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(x, (SSIM_WINDOW, SSIM_WINDOW), SSIM_SIGMA).reshape(x.shape)[inside, inside]

    mean_a, mean_b = mean(a), mean(b)
    variances = mean(a * a) - mean_a**2 + mean(b * b) - mean_b**2
    covariance = mean(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    return (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1), (2 * covariance + c2) / (variances + c2)
