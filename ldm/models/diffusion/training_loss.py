"""The training loss: the denoising error, the variational bound, and the edge term."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from basicsr.utils.errors import UserError
from ldm.models.diffusion import objective
from ldm.models.diffusion.schedule import Schedule
from ldm.modules.losses.edge_loss import EdgeLoss


@dataclass(frozen=True)
class LossReport:
    """The loss to minimise, and its parts by name, detached, for the log."""

    total: Tensor
    parts: dict[str, Tensor]


@dataclass(frozen=True)
class EdgeTerm:
    """What the edge loss needs besides latents: its weight, itself, and scaled latent -> picture in [-1, 1]."""

    weight: float
    loss: EdgeLoss
    decode: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class TrainingLoss:
    """loss = l_simple_weight * mean(loss_simple / exp(logvar) + logvar) + original_elbo_weight * loss_vlb
              + edge.weight * loss_edge

    loss_simple is the squared (`l2`) or absolute (`l1`) error of the U-Net's output per sample (Ho et al. 2020,
    equation 14); logvar is the fixed output variance `logvar_init` of published configs (Nichol & Dhariwal 2021).
    Raises UserError for another `loss_type`.
    """

    parameterization: str = "eps"
    loss_type: str = "l2"
    l_simple_weight: float = 1.0
    original_elbo_weight: float = 0.0
    logvar: float = 0.0

    def __post_init__(self) -> None:
        if self.loss_type not in ("l1", "l2"):
            raise UserError(f"model.params.loss_type is {self.loss_type!r}; choose l2 (published) or l1")

    def __call__(self, schedule: Schedule, vlb_weights: Tensor, output: Tensor, x_start: Tensor, x_t: Tensor,
                 noise: Tensor, t: Tensor, edge: EdgeTerm | None) -> LossReport:
        """All latents (B, 4, h, w), t (B,) in the schedule's own steps. Without `edge` nothing is decoded."""
        difference = output - objective.target(self.parameterization, schedule, x_start, noise, t)
        error = difference.abs() if self.loss_type == "l1" else difference.square()
        simple = error.mean(dim=(1, 2, 3))
        vlb = (vlb_weights[t] * simple).mean()
        weighed = simple / math.exp(self.logvar) + self.logvar
        total = self.l_simple_weight * weighed.mean() + self.original_elbo_weight * vlb
        parts = {"loss_simple": simple.mean(), "loss_vlb": vlb}
        if edge is not None:
            terms = self.edge_terms(schedule, output, x_start, x_t, t, edge)
            total = total + edge.weight * terms["loss_edge"]
            parts |= terms
        parts["loss"] = total
        return LossReport(total, {name: value.detach() for name, value in parts.items()})

    def edge_terms(self, schedule: Schedule, output: Tensor, x_start: Tensor, x_t: Tensor, t: Tensor,
                   edge: EdgeTerm) -> dict[str, Tensor]:
        """Decode the predicted and the true clean latent and compare them; only the prediction keeps a gradient."""
        with torch.no_grad():
            gt_pm1 = edge.decode(x_start)
        pred_pm1 = edge.decode(objective.x0_from_output(self.parameterization, schedule, output, x_t, t))
        loss, edge_map_mse = edge.loss(pred_pm1, gt_pm1)
        return {"loss_edge": loss, "edge_map_mse": edge_map_mse}
