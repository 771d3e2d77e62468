"""Samplers: plain functions of a denoiser, a starting point and a schedule."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from basicsr.utils import checks
from basicsr.utils.errors import FieldError
from ldm.models.diffusion.process import Noisy, Process
from ldm.models.diffusion.schedule import Schedule, respace, space_timesteps
from ldm.models.diffusion.tiling import Denoiser

# A shape -> standard-normal noise of that shape
Noise = Callable[[torch.Size], Tensor]
# Wraps the iteration over steps, to show progress
Progress = Callable[[Iterable[int]], Iterable[int]]


@dataclass(frozen=True)
class Sampling:
    """How a latent is sampled.

    steps: how many are taken from where sampling starts, evenly spaced (`timesteps`).
    sampler: ddpm (`sample_ddpm`) or ddim (`sample_ddim`). eta: the noise of DDIM, 0 (none) to 1 (as ancestral).
    start_t: the step of the whole process to start from; None is the last one.

    Raises:
        FieldError: an unknown sampler, or an eta outside [0, 1].
    """

    steps: int = 200
    sampler: str = "ddpm"
    eta: float = 0.0
    start_t: int | None = None

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise FieldError("sampler", f"is {self.sampler!r}: choose {' or '.join(SAMPLERS)}")
        checks.number("eta", self.eta, 0, 1)

    def timesteps(self, count: int) -> list[int]:
        """At which of a process's steps 0 … count - 1 the U-Net is asked, rising.

        ddpm takes them from the first to the last, ddim with a uniform stride of count // steps from step 0 (both as
        published). The one step of `steps` 1 is the last, for that is how noisy the latent to start with is.

        Raises:
            UserError: `steps` is not between 1 and `count`.
        """
        chosen = space_timesteps(count, self.steps)
        if self.steps == 1:
            return [count - 1]
        return list(range(0, count, count // self.steps)) if self.sampler == "ddim" else chosen


def noise_of_pictures(generators: Sequence[torch.Generator], device: torch.device | str) -> Noise:
    """Noise (B, …) of which each picture's part comes from a generator of its own, whatever it is batched with.

    Drawn where the generators are, on the CPU as a rule, so that a seed means the same on every device.
    """
    return lambda shape: torch.stack(
        [torch.randn(shape[1:], generator=rng, device=rng.device) for rng in generators]
    ).to(device)


def truncated(betas: np.ndarray, start_t: int | None) -> np.ndarray:
    """The process `betas` up to and with step `start_t`, where sampling is to start; None means all of it.

    Raises:
        FieldError: there is no such step.
    """
    if start_t is None:
        return betas
    if not 0 <= start_t < len(betas):
        raise FieldError("start_t", f"is {start_t}: choose a step of the process, 0 to {len(betas) - 1}")
    return betas[: start_t + 1]


def initial_latent(z_lq: Tensor, betas: np.ndarray, noise: Noise) -> Tensor:
    """x_T of q(x_T | x_0 = z_lq), T the last step of the process `betas`: where sampling starts (StableSR)."""
    last = torch.full((len(z_lq),), len(betas) - 1, device=z_lq.device)
    return Schedule.from_betas(betas).to(z_lq.device).q_sample(z_lq, t=last, noise=noise(z_lq.shape))


@torch.no_grad()
def sample_ddpm(
    denoise: Denoiser,
    x_T: Tensor,
    betas: np.ndarray,
    sampling: Sampling,
    *,
    parameterization: str,
    noise: Noise,
    progress: Progress = iter,
) -> Tensor:
    """Ancestral sampling (Ho et al. 2020, algorithm 2) over `sampling.timesteps` of the process `betas`.

    x_T (B, 4, h, w) is where to start, at the last step; returns x_0. The denoiser is told the original timesteps.
    """
    kept = sampling.timesteps(len(betas))
    schedule = Schedule.from_betas(respace(betas, kept)).to(x_T.device)
    process = Process(schedule, torch.tensor(kept, device=x_T.device), parameterization)
    x = x_T
    for i in progress(range(len(kept) - 1, -1, -1)):
        n = Noisy(x_t=x, t=torch.full((len(x),), i, device=x.device))
        output = denoise(x, process.timesteps[n.t])
        x = schedule.posterior_mean(process.x0(output, n), x_t=x, t=n.t)
        if i > 0:
            x = x + torch.exp(0.5 * schedule.posterior_log_variance_clipped[i]) * noise(x.shape)
    return x


@torch.no_grad()
def sample_ddim(
    denoise: Denoiser,
    x_T: Tensor,
    betas: np.ndarray,
    sampling: Sampling,
    *,
    parameterization: str,
    noise: Noise,
    progress: Progress = iter,
) -> Tensor:
    """DDIM (Song et al. 2021, equation 12) over `sampling.timesteps`, down to step 0. Arguments as of `sample_ddpm`."""
    timesteps = sampling.timesteps(len(betas))
    schedule = Schedule.from_betas(betas).to(x_T.device)
    process = Process(schedule, torch.arange(len(betas), device=x_T.device), parameterization)
    abar = np.cumprod(1.0 - betas)
    x = x_T
    for i in progress(range(len(timesteps) - 1, -1, -1)):
        now, before = abar[timesteps[i]], abar[timesteps[i - 1] if i > 0 else 0]
        n = Noisy(x_t=x, t=torch.full((len(x),), timesteps[i], device=x.device))
        output = denoise(x, n.t)
        x_0, eps = process.x0(output, n), process.eps(output, n)
        sigma = sampling.eta * np.sqrt((1 - before) / (1 - now) * (1 - now / before))
        x = np.sqrt(before) * x_0 + np.sqrt(1 - before - sigma**2) * eps
        if sigma > 0:
            x = x + sigma * noise(x.shape)
    return x


SAMPLERS = {"ddpm": sample_ddpm, "ddim": sample_ddim}
DEFAULTS = Sampling()
