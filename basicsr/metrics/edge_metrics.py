"""How well edges are restored: overlap of edge maps, gradients, and errors on edges and away from them.

Edge maps are boolean (H, W) arrays, True on edges, such as `edge_map` gives. Maps without edges have defined values.
"""

from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from basicsr.metrics.psnr_ssim import decibels, psnr
from basicsr.utils.edge_utils import EdgeMapGenerator
from basicsr.utils.img_process_util import filter2D
from basicsr.utils.ranges import to_u8

# Sobel's derivative along x of a picture in [0, 1], in [-1, 1].
_SOBEL = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]], dtype=torch.float64) / 4


class EdgeOverlap(NamedTuple):
    """Shares from 0 to 1; higher is better."""

    precision: float  # of the predicted edge pixels, those that lie by a true one
    recall: float  # of the true edge pixels, those that lie by a predicted one
    f1: float  # harmonic mean of the two


class RegionErrors(NamedTuple):
    """Mean squared errors, 0 to 1, lower is better; NaN where there is no such pixel."""

    edges: float  # of the pixels on the true picture's edges and beside them
    flat: float  # of all others
    edge_share: float  # of pixels that belong to `edges`: mse = edge_share * edges + (1 - edge_share) * flat


def edge_map(img_01: Tensor) -> np.ndarray:
    """The edges that the edge loss weights by: RGB (3, H, W) in [0, 1], rounded to 8 bits -> bool (H, W)."""
    pixels = to_u8(img_01.double()).permute(1, 2, 0).cpu().numpy()
    return EdgeMapGenerator().generate_from_numpy(pixels, "RGB", normalize_input=False)[..., 0] > 0


def edge_psnr(pred_edges: np.ndarray, true_edges: np.ndarray) -> float:
    """PSNR of two edge maps, 10 log10(1 / share of pixels where they differ): dB, higher is better.

    0 where they differ everywhere, `PSNR_CAP` (100) where nowhere: also where neither has edges. It is strict, as an
    edge that moved by one pixel counts twice, and blind: few edges at all already give a high value. Read it beside F1.

    Raises:
        ValueError: the maps differ in shape.
    """
    _check(pred_edges, true_edges)
    return decibels(float(np.mean(pred_edges != true_edges)))


def edge_precision_recall_f1(pred_edges: np.ndarray, true_edges: np.ndarray, tolerance: int = 1) -> EdgeOverlap:
    """Overlap of two edge maps: an edge pixel is met by one at most `tolerance` pixels off along each axis.

    After Martin, Fowlkes and Malik ("Learning to detect natural image boundaries", PAMI 2004), with one simplification:
    a pixel may meet several others. Recall alone would reward noise, which puts edges everywhere; precision alone would
    reward blur. Where neither map has edges all three are 1; where only one has, all three are 0.

    Raises:
        ValueError: the maps differ in shape, or the tolerance is negative.
    """
    _check(pred_edges, true_edges)
    if tolerance < 0:
        raise ValueError(f"tolerance is {tolerance}: give 0 pixels or more")
    if not pred_edges.any() or not true_edges.any():
        return EdgeOverlap(*[float(pred_edges.any() == true_edges.any())] * 3)
    precision = float(_widened(true_edges, tolerance)[pred_edges].mean())
    recall = float(_widened(pred_edges, tolerance)[true_edges].mean())
    return EdgeOverlap(precision, recall, 2 * precision * recall / (precision + recall) if precision + recall else 0.0)


def gradient_magnitude(y_01: Tensor) -> Tensor:
    """(1, H, W) in [0, 1] -> (1, H, W) in [0, 1]: root mean square of Sobel's two derivatives; borders are mirrored."""
    y = y_01[None].double()
    across, down = (filter2D(y, kernel.to(y)) for kernel in (_SOBEL, _SOBEL.T))
    return ((across.square() + down.square()) / 2).sqrt()[0]


def gradient_psnr(a_01: Tensor, b_01: Tensor) -> float:
    """PSNR of the gradient magnitudes of two pictures (1, H, W) in [0, 1]: dB, 0 to `PSNR_CAP`, higher is closer.

    10 log10(1 / MSE) of `gradient_magnitude`. It needs no thresholds, so it sees edges that Canny leaves out.
    """
    return psnr(gradient_magnitude(a_01), gradient_magnitude(b_01))


def region_errors(a_01: Tensor, b_01: Tensor, true_edges: np.ndarray, width: int = 1) -> RegionErrors:
    """The MSE of two pictures (C, H, W) in [0, 1], split into edge and flat regions.

    Edge regions are `true_edges` (H, W) widened by `width` pixels on every side.
    """
    squared = (a_01.double() - b_01.double()).square().mean(0).cpu().numpy()
    region = _widened(true_edges, width)
    on_edges, elsewhere = (float(part.mean()) if part.size else np.nan for part in (squared[region], squared[~region]))
    return RegionErrors(on_edges, elsewhere, float(region.mean()))


def _widened(edges: np.ndarray, radius: int) -> np.ndarray:
    """bool (H, W) -> bool (H, W): True within `radius` pixels of a True one along both axes."""
    square = np.ones((2 * radius + 1, 2 * radius + 1), np.uint8)
    return cv2.dilate(edges.astype(np.uint8), square) > 0


def _check(pred_edges: np.ndarray, true_edges: np.ndarray) -> None:
    if pred_edges.shape != true_edges.shape:
        raise ValueError(f"edge maps of different sizes: predicted {pred_edges.shape}, true {true_edges.shape}")
