"""The training loss: the denoising error, the variational bound, and the edge term."""

import math
from dataclasses import dataclass

from torch import Tensor

from basicsr.utils.errors import UserError
from ldm.models.diffusion import objective
from ldm.models.diffusion.edge_term import EdgeTerm
from ldm.models.diffusion.schedule import Schedule


@dataclass(frozen=True)
class LossReport:
    """The loss to minimise, and its parts by name, detached, for the log."""

    total: Tensor
    parts: dict[str, Tensor]


@dataclass(frozen=True)
class TrainingLoss:
    """loss = l_simple_weight * mean(loss_simple / exp(logvar) + logvar) + original_elbo_weight * loss_vlb
              + weight * loss_edge  (`EdgeTerm`)

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

    def __call__(
        self,
        schedule: Schedule,
        vlb_weights: Tensor,
        output: Tensor,
        x_start: Tensor,
        x_t: Tensor,
        noise: Tensor,
        t: Tensor,
        edge: EdgeTerm | None,
    ) -> LossReport:
        """All latents (B, 4, h, w), t (B,) in the schedule's own steps. Without `edge` nothing is decoded."""
        difference = output - objective.target(self.parameterization, schedule, x_start, noise, t)
        error = difference.abs() if self.loss_type == "l1" else difference.square()
        simple = error.mean(dim=(1, 2, 3))
        vlb = (vlb_weights[t] * simple).mean()
        weighed = simple / math.exp(self.logvar) + self.logvar
        total = self.l_simple_weight * weighed.mean() + self.original_elbo_weight * vlb
        parts = {"loss_simple": simple.mean(), "loss_vlb": vlb}
        if edge is not None:
            total, edge_parts = edge.added_to(total, self.parameterization, schedule, output, x_start, x_t, t)
            parts |= edge_parts
        parts["loss"] = total
        return LossReport(total, {name: value.detach() for name, value in parts.items()})
