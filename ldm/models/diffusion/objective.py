"""What the U-Net's output means: the noise (eps), the clean latent (x0), or the velocity (v)."""

from typing import Literal, get_args

import torch
from torch import Tensor

from basicsr.utils.errors import UserError
from ldm.models.diffusion.schedule import Schedule, at

Parameterization = Literal["eps", "x0", "v"]


def check_parameterization(kind: str) -> None:
    """Raise UserError unless `kind` is one of eps, x0 and v."""
    if kind not in get_args(Parameterization):
        raise UserError(f"model.params.parameterization is {kind!r}; choose eps (512 models), v (768 models) or x0")


def target(kind: str, schedule: Schedule, x_start: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """What the U-Net should output at step t.

    eps: the noise (Ho et al. 2020, equation 14); x0: the clean latent;
    v: sqrt(abar) noise - sqrt(1 - abar) x_0 (Salimans & Ho 2022, section 4).
    """
    if kind == "eps":
        return noise
    if kind == "x0":
        return x_start
    return (
        at(schedule.sqrt_alphas_cumprod, t, noise) * noise
        - at(schedule.sqrt_one_minus_alphas_cumprod, t, noise) * x_start
    )


def x0_from_output(kind: str, schedule: Schedule, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """The clean latent that the U-Net's output implies.

    eps: (x_t - sqrt(1 - abar) eps) / sqrt(abar) (Ho et al. 2020, equation 15);
    v: sqrt(abar) x_t - sqrt(1 - abar) v (Salimans & Ho 2022, appendix D).
    """
    if kind == "eps":
        return (
            at(schedule.sqrt_recip_alphas_cumprod, t, x_t) * x_t
            - at(schedule.sqrt_recipm1_alphas_cumprod, t, x_t) * output
        )
    if kind == "x0":
        return output
    return at(schedule.sqrt_alphas_cumprod, t, x_t) * x_t - at(schedule.sqrt_one_minus_alphas_cumprod, t, x_t) * output


def eps_from_output(kind: str, schedule: Schedule, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """The noise that the U-Net's output implies; for v: sqrt(abar) v + sqrt(1 - abar) x_t."""
    if kind == "eps":
        return output
    if kind == "x0":
        return (at(schedule.sqrt_recip_alphas_cumprod, t, x_t) * x_t - output) / at(
            schedule.sqrt_recipm1_alphas_cumprod, t, x_t
        )
    return at(schedule.sqrt_alphas_cumprod, t, x_t) * output + at(schedule.sqrt_one_minus_alphas_cumprod, t, x_t) * x_t


def vlb_weights(kind: str, schedule: Schedule) -> Tensor:
    """Weight (T,) of the squared error in the variational bound, logged as `loss_vlb`; [0] repeats [1], as published.

    eps: beta^2 / (2 posterior_variance alpha (1 - abar)) (Ho et al. 2020, equation 12). The published forms for x0 and
    v are kept although neither is the bound's: sqrt(abar) / (2 (2 - abar)), and 1.
    A process of one step has no such weight.
    """
    abar = schedule.alphas_cumprod
    if kind == "eps":
        weights = schedule.betas**2 / (2 * schedule.posterior_variance * (1 - schedule.betas) * (1 - abar))
    elif kind == "x0":
        weights = 0.5 * abar.sqrt() / (2 - abar)
    else:
        weights = torch.ones_like(abar)
    weights[0] = weights[1]
    return weights
