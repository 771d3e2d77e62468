"""How well edges are restored. Edge maps are boolean (H, W) arrays, True on edges."""

import math
from typing import NamedTuple

import cv2
import numpy as np


class EdgeOverlap(NamedTuple):
    """Shares from 0 to 1; higher is better."""

    precision: float
    recall: float
    f1: float


def edge_precision_recall_f1(pred_edges: np.ndarray, true_edges: np.ndarray, tolerance: int = 1) -> EdgeOverlap:
    """Overlap of two maps, where an edge pixel is met by one at most `tolerance` pixels off along each axis."""
    if not pred_edges.any() or not true_edges.any():
        return EdgeOverlap(*[float(pred_edges.any() == true_edges.any())] * 3)
    square = np.ones((2 * tolerance + 1, 2 * tolerance + 1), np.uint8)
    near_true, near_pred = (cv2.dilate(edges.astype(np.uint8), square) > 0 for edges in (true_edges, pred_edges))
    precision, recall = float(near_true[pred_edges].mean()), float(near_pred[true_edges].mean())
    return EdgeOverlap(precision, recall, 2 * precision * recall / (precision + recall) if precision + recall else 0.0)


def edge_psnr(pred_edges: np.ndarray, true_edges: np.ndarray) -> float:
    """PSNR of two maps: 10 log10(1 / share of pixels where they differ), in dB; 100 where nowhere."""
    differing = float(np.mean(pred_edges != true_edges))
    return min(100.0, -10 * math.log10(differing)) if differing else 100.0
