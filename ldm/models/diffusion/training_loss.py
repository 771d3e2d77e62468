"""The training loss: the denoising error and the variational bound. The edge loss comes on top (`EdgeTerm`)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from basicsr.utils import checks
from basicsr.utils.errors import FieldError
from ldm.models.diffusion.process import Noised, Process


@dataclass(frozen=True)
class LossReport:
    """The loss to minimise, and its parts by name, detached, for the log."""

    total: Tensor
    parts: dict[str, Tensor]


@dataclass(frozen=True)
class TrainingLoss:
    """loss = l_simple_weight * mean(loss_simple / exp(logvar) + logvar) + original_elbo_weight * loss_vlb

    loss_simple is the squared (`l2`) or absolute (`l1`) error of the U-Net's output per sample (Ho et al. 2020,
    equation 14); logvar is the fixed output variance `logvar_init` of published configs (Nichol & Dhariwal 2021).

    last_step_share: of training's draws, this share is of the last step, beside those that fall on it anyway, 1 / T of
        all with T steps. It is the only step that a sampling in one step sees.

    Raises:
        FieldError: another `loss_type`, or a share outside [0, 1].
    """

    loss_type: str = "l2"
    l_simple_weight: float = 1.0
    original_elbo_weight: float = 0.0
    logvar_init: float = 0.0
    last_step_share: float = 0.0

    def __post_init__(self) -> None:
        if self.loss_type not in ("l1", "l2"):
            raise FieldError("loss_type", f"is {self.loss_type!r}; choose l2 (published) or l1")
        checks.probability("last_step_share", self.last_step_share)

    def draw_steps(self, steps: int, count: int, rng: torch.Generator, *, training: bool) -> Tensor:
        """The steps t (count,) of a batch, 0 to `steps` - 1: uniform, but for `last_step_share` in training."""
        t = torch.randint(steps, (count,), generator=rng, device=rng.device)
        if training and self.last_step_share:
            t[torch.rand(count, generator=rng, device=rng.device) < self.last_step_share] = steps - 1
        return t

    def __call__(self, process: Process, n: Noised, output: Tensor) -> LossReport:
        """Of the U-Net's output (B, 4, h, w) for one draw."""
        difference = output - process.target(n)
        error = difference.abs() if self.loss_type == "l1" else difference.square()
        simple = error.mean(dim=(1, 2, 3))
        vlb = (process.vlb_weights()[n.t] * simple).mean()
        weighed = simple / math.exp(self.logvar_init) + self.logvar_init
        total = self.l_simple_weight * weighed.mean() + self.original_elbo_weight * vlb
        parts = {"loss_simple": simple.mean(), "loss_vlb": vlb, "loss": total}
        return LossReport(total, {name: value.detach() for name, value in parts.items()})
