"""The diffusion process of a model: what is added to a latent, and what the U-Net's output says about it."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor

from basicsr.utils.errors import FieldError
from ldm.models.diffusion.schedule import Schedule, at

Parameterization = Literal["eps", "x0", "v"]


def check_parameterization(parameterization: str) -> None:
    """Raise FieldError unless it is one of eps, x0 and v."""
    if parameterization not in get_args(Parameterization):
        raise FieldError("parameterization", f"is {parameterization!r}; choose eps (512 models), v (768 models) or x0")


@dataclass(frozen=True)
class Noisy:
    """Latents x_t (B, 4, h, w) at steps t (B,) of a process."""

    x_t: Tensor
    t: Tensor


@dataclass(frozen=True)
class Noised(Noisy):
    """One training draw: x_t of the true latents z_gt and of the noise, all (B, 4, h, w), and what t is called
    originally, (B,).
    """

    z_gt: Tensor
    noise: Tensor
    t_original: Tensor

    def chosen(self, samples: Tensor) -> "Noised":
        """Those of a boolean mask (B,)."""
        return Noised(**{name: value[samples] for name, value in vars(self).items()})


@dataclass(frozen=True)
class Process:
    """A schedule of T steps, what these are called in the original process, and what the U-Net predicts.

    timesteps: (T,), which the networks are told. parameterization: eps, x0 or v.
    """

    schedule: Schedule
    timesteps: Tensor
    parameterization: str

    def noised(self, z_gt: Tensor, *, t: Tensor, noise: Tensor) -> Noised:
        """z_gt at steps t (B,), with that noise."""
        x_t = self.schedule.q_sample(z_gt, t=t, noise=noise)
        return Noised(x_t=x_t, t=t, z_gt=z_gt, noise=noise, t_original=self.timesteps[t])

    def target(self, n: Noised) -> Tensor:
        """What the U-Net should output.

        eps: the noise (Ho et al. 2020, equation 14); x0: the clean latent;
        v: sqrt(abar) noise - sqrt(1 - abar) x_0 (Salimans & Ho 2022, section 4).
        """
        if self.parameterization == "eps":
            return n.noise
        if self.parameterization == "x0":
            return n.z_gt
        schedule = self.schedule
        return (
            at(schedule.sqrt_alphas_cumprod, n.t, n.noise) * n.noise
            - at(schedule.sqrt_one_minus_alphas_cumprod, n.t, n.noise) * n.z_gt
        )

    def x0(self, output: Tensor, n: Noisy) -> Tensor:
        """The clean latent that the U-Net's output implies.

        eps: (x_t - sqrt(1 - abar) eps) / sqrt(abar) (Ho et al. 2020, equation 15);
        v: sqrt(abar) x_t - sqrt(1 - abar) v (Salimans & Ho 2022, appendix D).
        """
        schedule, x_t, t = self.schedule, n.x_t, n.t
        if self.parameterization == "eps":
            return (
                at(schedule.sqrt_recip_alphas_cumprod, t, x_t) * x_t
                - at(schedule.sqrt_recipm1_alphas_cumprod, t, x_t) * output
            )
        if self.parameterization == "x0":
            return output
        return (
            at(schedule.sqrt_alphas_cumprod, t, x_t) * x_t - at(schedule.sqrt_one_minus_alphas_cumprod, t, x_t) * output
        )

    def eps(self, output: Tensor, n: Noisy) -> Tensor:
        """The noise that the U-Net's output implies; for v: sqrt(abar) v + sqrt(1 - abar) x_t."""
        schedule, x_t, t = self.schedule, n.x_t, n.t
        if self.parameterization == "eps":
            return output
        if self.parameterization == "x0":
            return (at(schedule.sqrt_recip_alphas_cumprod, t, x_t) * x_t - output) / at(
                schedule.sqrt_recipm1_alphas_cumprod, t, x_t
            )
        return (
            at(schedule.sqrt_alphas_cumprod, t, x_t) * output + at(schedule.sqrt_one_minus_alphas_cumprod, t, x_t) * x_t
        )

    def snr(self, t: Tensor) -> Tensor:
        """Signal-to-noise ratio abar / (1 - abar) at steps t (B,)."""
        abar = self.schedule.alphas_cumprod[t]
        return abar / (1 - abar)

    def vlb_weights(self) -> Tensor:
        """Weight (T,) of the squared error in the variational bound, logged as `loss_vlb`; [0] repeats [1], as
        published.

        eps: beta^2 / (2 posterior_variance alpha (1 - abar)) (Ho et al. 2020, equation 12). The published forms for x0
        and v are kept although neither is the bound's: sqrt(abar) / (2 (2 - abar)), and 1.
        A process of one step has no such weight: 0.
        """
        return self._vlb_weights

    @cached_property
    def _vlb_weights(self) -> Tensor:
        if len(self.timesteps) == 1:
            return torch.zeros_like(self.schedule.betas)
        schedule, abar = self.schedule, self.schedule.alphas_cumprod
        if self.parameterization == "eps":
            weights = schedule.betas**2 / (2 * schedule.posterior_variance * (1 - schedule.betas) * (1 - abar))
        elif self.parameterization == "x0":
            weights = 0.5 * abar.sqrt() / (2 - abar)
        else:
            weights = torch.ones_like(abar)
        return torch.cat([weights[1:2], weights[1:]])
