"""The edge loss: squared pixel error, weighted where the true picture has edges."""

from typing import NamedTuple

import torch
from torch import Tensor

from basicsr.utils.edge_utils import EdgeMapGenerator


class EdgeTerms(NamedTuple):
    """`loss` carries the gradient; `edge_map_mse` is for the eye alone, since Canny has no gradient."""

    loss: Tensor
    edge_map_mse: Tensor


class EdgeLoss:
    """loss = mean((pred - gt)^2 * (E + base_weight)),  E = Canny(gt) in {0, 1}, one channel for all three

    edge_map_mse = mean((Canny(pred) - E)^2)

    `base_weight` keeps flat regions from drifting: with E alone nothing would hold them.
    """

    base_weight = 0.1

    def __init__(self, generator: EdgeMapGenerator | None = None) -> None:
        self.generator = generator or EdgeMapGenerator()

    def __call__(self, pred_pm1: Tensor, gt_pm1: Tensor) -> EdgeTerms:
        """Both pictures (B, 3, H, W), nominally in [-1, 1], not clamped; the gradient flows to `pred_pm1` alone.

        Computed in float32, whatever precision the decoder ran in.
        """
        pred_pm1, gt_pm1 = pred_pm1.float(), gt_pm1.detach().float()
        with torch.no_grad():
            edges = self.generator.edges_01(gt_pm1)
            edge_map_mse = (self.generator.edges_01(pred_pm1) - edges).square().mean()
        loss = ((pred_pm1 - gt_pm1).square() * (edges + self.base_weight)).mean()
        return EdgeTerms(loss, edge_map_mse)
