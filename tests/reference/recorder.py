"""A `degradation:` block with every part, and a model that notes the pairs which training gives it."""

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from basicsr.data.pair_pool import Pair

SIZE = 16
DEGRADATION: dict[str, Any] = {
    "resize_prob": [0.2, 0.7, 0.1],
    "resize_range": [0.5, 1.5],
    "gaussian_noise_prob": 0.5,
    "noise_range": [1, 15],
    "poisson_scale_range": [0.05, 2.0],
    "gray_noise_prob": 0.4,
    "jpeg_range": [60, 95],
    "second_blur_prob": 0.5,
    "resize_prob2": [0.3, 0.4, 0.3],
    "resize_range2": [0.6, 1.2],
    "gaussian_noise_prob2": 0.5,
    "noise_range2": [1, 12],
    "poisson_scale_range2": [0.05, 1.0],
    "gray_noise_prob2": 0.4,
    "jpeg_range2": [60, 100],
    "gt_size": SIZE,
    "no_degradation_prob": 0.0,
}


class Recorder(pl.LightningModule):
    """Notes every pair it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen: list[tuple[tuple[str, ...], float]] = []
        self.validated: list[float] = []

    def training_step(self, pair: Pair, batch_idx: int) -> Tensor:
        self.seen.append((pair.paths, float(pair.lq_pm1.double().sum())))
        loss: Tensor = self.layer(torch.ones(1, 1)).sum()
        return loss

    def validation_step(self, pair: Pair, batch_idx: int) -> None:
        self.validated.append(float(pair.lq_pm1.double().sum()))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)
