"""How well edges are restored."""

from typing import NamedTuple

import cv2
import numpy as np


class EdgeOverlap(NamedTuple):
    """Shares from 0 to 1; higher is better."""

    precision: float  # of the predicted edge pixels, those near a true one
    recall: float  # of the true edge pixels, those near a predicted one
    f1: float  # harmonic mean of the two


def edge_precision_recall_f1(pred_edges: np.ndarray, true_edges: np.ndarray, tolerance: int = 1) -> EdgeOverlap:
    """Overlap of two boolean edge maps (H, W), edges at most `tolerance` pixels apart along each axis counting as one.

    Where neither map has edges all three are 1; where only one has, 0.
    """
    if not pred_edges.any() or not true_edges.any():
        return EdgeOverlap(*[float(pred_edges.any() == true_edges.any())] * 3)
    near = np.ones((2 * tolerance + 1, 2 * tolerance + 1), np.uint8)
    precision, recall = (float((cv2.dilate(b.astype(np.uint8), near) > 0)[a].mean())
                         for a, b in ((pred_edges, true_edges), (true_edges, pred_edges)))
    return EdgeOverlap(precision, recall, 2 * precision * recall / (precision + recall) if precision + recall else 0.0)
