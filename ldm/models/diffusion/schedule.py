"""Noise schedules: betas to a frozen set of tensors, and the choice of fewer steps from many."""

from dataclasses import dataclass, fields
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from basicsr.utils.errors import UserError


def at(values: Tensor, t: Tensor, like: Tensor) -> Tensor:
    """values[t] for timesteps t (B,), shaped (B, 1, …) to multiply `like` (B, …)."""
    return values[t].reshape(-1, *[1] * (like.ndim - 1))


@dataclass(frozen=True)
class Schedule:
    """The constants of a diffusion process of T steps, each (T,); names and values as in published checkpoints.

    q(x_t | x_0) = N(sqrt(alphas_cumprod_t) x_0, 1 - alphas_cumprod_t)  (Ho et al. 2020, equation 4), and the posterior
    q(x_{t-1} | x_t, x_0) of their equations 6 and 7.
    """

    betas: Tensor
    alphas_cumprod: Tensor
    alphas_cumprod_prev: Tensor
    sqrt_alphas_cumprod: Tensor
    sqrt_one_minus_alphas_cumprod: Tensor
    log_one_minus_alphas_cumprod: Tensor
    sqrt_recip_alphas_cumprod: Tensor
    sqrt_recipm1_alphas_cumprod: Tensor
    posterior_variance: Tensor
    posterior_log_variance_clipped: Tensor
    posterior_mean_coef1: Tensor
    posterior_mean_coef2: Tensor

    @classmethod
    def names(cls) -> list[str]:
        """Names of the tensors, which are the buffers of a checkpoint."""
        return [field.name for field in fields(cls)]

    @classmethod
    def from_betas(cls, betas: np.ndarray) -> "Schedule":
        """From betas (T,), stored in float32, computed in the precision of `betas`; see `respace` for why."""
        alphas_cumprod = np.cumprod(1.0 - betas)
        previous = np.append(1.0, alphas_cumprod[:-1])
        variance = betas * (1.0 - previous) / (1.0 - alphas_cumprod)
        values = {
            "betas": betas,
            "alphas_cumprod": alphas_cumprod,
            "alphas_cumprod_prev": previous,
            "sqrt_alphas_cumprod": np.sqrt(alphas_cumprod),
            "sqrt_one_minus_alphas_cumprod": np.sqrt(1.0 - alphas_cumprod),
            "log_one_minus_alphas_cumprod": np.log(1.0 - alphas_cumprod),
            "sqrt_recip_alphas_cumprod": np.sqrt(1.0 / alphas_cumprod),
            "sqrt_recipm1_alphas_cumprod": np.sqrt(1.0 / alphas_cumprod - 1.0),
            "posterior_variance": variance,
            # The variance of the first step is 0; its logarithm is never used but must be finite.
            "posterior_log_variance_clipped": np.log(np.maximum(variance, 1e-20)),
            "posterior_mean_coef1": betas * np.sqrt(previous) / (1.0 - alphas_cumprod),
            "posterior_mean_coef2": (1.0 - previous) * np.sqrt(1.0 - betas) / (1.0 - alphas_cumprod),
        }
        return cls(**{name: torch.tensor(value, dtype=torch.float32) for name, value in values.items()})

    def to(self, device: torch.device | str) -> "Schedule":
        """The same schedule on another device."""
        return Schedule(**{name: getattr(self, name).to(device) for name in self.names()})

    def q_sample(self, x_0: Tensor, *, t: Tensor, noise: Tensor) -> Tensor:
        """x_t of q(x_t | x_0) for the given standard-normal noise."""
        return at(self.sqrt_alphas_cumprod, t, x_0) * x_0 + at(self.sqrt_one_minus_alphas_cumprod, t, x_0) * noise

    def posterior_mean(self, x_0: Tensor, *, x_t: Tensor, t: Tensor) -> Tensor:
        """Mean of q(x_{t-1} | x_t, x_0)."""
        return at(self.posterior_mean_coef1, t, x_t) * x_0 + at(self.posterior_mean_coef2, t, x_t) * x_t


def make_betas(timesteps: int, linear_start: float, linear_end: float) -> np.ndarray:
    """Stable Diffusion's "linear" schedule in float64: linear in the square root of beta."""
    return np.linspace(linear_start**0.5, linear_end**0.5, timesteps, dtype=np.float64) ** 2


def space_timesteps(timesteps: int, count: int) -> list[int]:
    """`count` of the steps 0 … timesteps - 1, evenly spaced from the first to the last and rounded.

    Raises UserError where `count` is not between 1 and `timesteps`.
    """
    if not 1 <= count <= timesteps:
        raise UserError(f"cannot choose {count} of {timesteps} steps; choose 1 to {timesteps}")
    stride = (timesteps - 1) / max(count - 1, 1)
    # Summed rather than multiplied: the published steps carry the rounding of a running sum (it shows at 999 of 1000).
    positions = accumulate([0.0] + [stride] * (count - 1))
    return [round(position) for position in positions]


def respace(betas: np.ndarray, kept: list[int]) -> np.ndarray:
    """Betas of the process that visits only the steps `kept`, with the same alphas_cumprod there (Nichol & Dhariwal
    2021, equation 19).

    In float32, since published models were trained and sampled so: their betas carry that rounding, 6e-6 of their size.
    """
    alphas_cumprod = np.cumprod(1.0 - betas)[kept].astype(np.float32)
    return 1 - alphas_cumprod / np.append(np.float32(1), alphas_cumprod[:-1])
