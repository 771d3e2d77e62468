"""Samplers: plain functions of a denoiser, a starting point and a schedule."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from basicsr.utils import checks
from basicsr.utils.errors import FieldError
from ldm.models.diffusion.process import Noisy, Process
from ldm.models.diffusion.reference import Correction
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
    sampler: ddpm (`sample_ddpm`), ddim (`sample_ddim`), dpmpp or unipc (`sample_multistep`). eta: the noise of DDIM, 0
        (none) to 1 (as ancestral).
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
            raise FieldError("sampler", f"is {self.sampler!r}: choose {', '.join(SAMPLERS)}")
        checks.number("eta", self.eta, 0, 1)

    def timesteps(self, betas: np.ndarray) -> list[int]:
        """At which steps of the process `betas` the U-Net is asked, rising.

        ddpm takes them from the first to the last, ddim with a uniform stride of T // steps from step 0 (both as
        published). The one step of `steps` 1 is the last, for that is how noisy the latent to start with is. dpmpp and
        unipc divide the way from the last step to step 0 evenly in lambda, see `even_in_lambda`.

        Raises:
            UserError: `steps` is not between 1 and T.
        """
        count = len(betas)
        chosen = space_timesteps(count, self.steps)
        if self.steps == 1:
            return [count - 1]
        if self.sampler == "ddim":
            return list(range(0, count, count // self.steps))
        return chosen if self.sampler == "ddpm" else even_in_lambda(betas, min(self.steps, count - 1))


def log_snr(abar: float) -> float:
    """lambda = log(sqrt(abar) / sqrt(1 - abar)), half of the log signal-to-noise ratio."""
    return 0.5 * math.log(abar / (1 - abar))


def even_in_lambda(betas: np.ndarray, steps: int) -> list[int]:
    """Where each of so many parts of the way from the last step down to step 0 begins, rising; they are even in lambda
    (Lu et al. 2022, DPM-Solver, section 3.4), as far as whole steps, each of them once, allow.
    """
    lambdas = np.array([log_snr(abar) for abar in np.cumprod(1.0 - betas)])
    last, chosen = len(betas) - 1, [0]
    for k, wanted in enumerate(np.linspace(lambdas[0], lambdas[-1], steps + 1)[1:], start=1):
        nearest = int(np.abs(lambdas - wanted).argmin())
        chosen.append(min(max(nearest, chosen[-1] + 1), last - (steps - k)))
    return chosen[1:]


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
    correct: Correction | None = None,
) -> Tensor:
    """Ancestral sampling (Ho et al. 2020, algorithm 2) over `sampling.timesteps` of the process `betas`.

    x_T (B, 4, h, w) is where to start, at the last step; returns x_0. The denoiser is told the original timesteps;
    `correct` may change the x_0 that its output implies.
    """
    kept = sampling.timesteps(betas)
    schedule = Schedule.from_betas(respace(betas, kept)).to(x_T.device)
    process = Process(schedule, torch.tensor(kept, device=x_T.device), parameterization)
    x = x_T
    for i in progress(range(len(kept) - 1, -1, -1)):
        n = Noisy(x_t=x, t=torch.full((len(x),), i, device=x.device))
        output = denoise(x, process.timesteps[n.t])
        x_0 = process.x0(output, n)
        if correct is not None:
            x_0 = correct(x_0, process.timesteps[n.t])
        x = schedule.posterior_mean(x_0, x_t=x, t=n.t)
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
    correct: Correction | None = None,
) -> Tensor:
    """DDIM (Song et al. 2021, equation 12) over `sampling.timesteps`, down to step 0. Arguments as of `sample_ddpm`."""
    timesteps = sampling.timesteps(betas)
    schedule = Schedule.from_betas(betas).to(x_T.device)
    process = Process(schedule, torch.arange(len(betas), device=x_T.device), parameterization)
    abar = np.cumprod(1.0 - betas)
    x = x_T
    for i in progress(range(len(timesteps) - 1, -1, -1)):
        now, before = abar[timesteps[i]], abar[timesteps[i - 1] if i > 0 else 0]
        n = Noisy(x_t=x, t=torch.full((len(x),), timesteps[i], device=x.device))
        output = denoise(x, n.t)
        x_0, eps = process.x0(output, n), process.eps(output, n)
        if correct is not None:  # and x_t is still made of x_0 and eps
            x_0 = correct(x_0, n.t)
            eps = replace(process, parameterization="x0").eps(x_0, n)
        sigma = sampling.eta * np.sqrt((1 - before) / (1 - now) * (1 - now / before))
        x = np.sqrt(before) * x_0 + np.sqrt(1 - before - sigma**2) * eps
        if sigma > 0:
            x = x + sigma * noise(x.shape)
    return x


@dataclass(frozen=True)
class Known:
    """A point on the way of a sampler: abar there, and the clean latent (B, 4, h, w) that was predicted there."""

    abar: float
    x_0: Tensor

    def reached(self, x: Tensor, abar: float, x_0: Tensor) -> Tensor:
        """Where the probability flow leads from x, which is here, to `abar`, if the clean latent is x_0 all the way.

        sigma_t / sigma_s x - alpha_t (e^-h - 1) x_0 (Lu et al. 2022, DPM-Solver++, section 4), written without h:
        DDIM's step. The exact solution has x_0's mean over the way, in lambda and weighted by e^lambda.
        """
        ratio = math.sqrt((1 - abar) / (1 - self.abar))
        return ratio * x + (math.sqrt(abar) - ratio * math.sqrt(self.abar)) * x_0


def predicted_mean(here: Known, before: Known | None, abar: float) -> Tensor:
    """x_0's mean from here to `abar`, by the line through here and the point before: DPM-Solver++(2M), algorithm 2 of
    Lu et al. 2022, and UniP-2 of Zhao et al. 2023 with B(h) = e^h - 1, which are the same.
    """
    if before is None:
        return here.x_0
    h, last_h = (log_snr(to) - log_snr(start) for start, to in ((here.abar, abar), (before.abar, here.abar)))
    return here.x_0 + h / (2 * last_h) * (here.x_0 - before.x_0)


def corrected_mean(start: Known, before: Known | None, end: Known) -> Tensor:
    """x_0's mean from start to end, now that it is known at the end, too: UniC of Zhao et al. 2023, section 3.

    UniC-2 integrates the parabola through the three points exactly. With tau from 0 (start) to 1 (end) and weights
    e^(h tau) its moments are E[tau] = 1 / (1 - e^-h) - 1 / h and E[tau^2] = 1 / (1 - e^-h) - 2 / h E[tau]. UniC-1, for
    want of a point before, is the mean of both ends.
    """
    if before is None:
        return (start.x_0 + end.x_0) / 2
    h = log_snr(end.abar) - log_snr(start.abar)
    r = (log_snr(before.abar) - log_snr(start.abar)) / h  # the tau of the point before, below 0
    first = -1 / math.expm1(-h) - 1 / h
    second = -1 / math.expm1(-h) - 2 / h * first
    # The weights of both differences from x_0 at the start: they sum to the first moment, and with r to the second.
    of_before = (first - second) / (1 - r)
    return start.x_0 + of_before / r * (before.x_0 - start.x_0) + (first - of_before) * (end.x_0 - start.x_0)


@torch.no_grad()
def sample_multistep(
    denoise: Denoiser,
    x_T: Tensor,
    betas: np.ndarray,
    sampling: Sampling,
    *,
    parameterization: str,
    noise: Noise,
    progress: Progress = iter,
    correct: Correction | None = None,
) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022), or UniPC of order 2 (Zhao et al. 2023), down to step 0 like `sample_ddim`.

    Both remember the clean latents of the step before; the first step is DDIM's, for want of one. UniPC takes the same
    steps, and takes each but the last again with what the network said at its end, which costs no further call.
    Arguments as of `sample_ddpm`; no noise is drawn.
    """
    timesteps = sampling.timesteps(betas)
    schedule = Schedule.from_betas(betas).to(x_T.device)
    process = Process(schedule, torch.arange(len(betas), device=x_T.device), parameterization)
    abar = np.cumprod(1.0 - betas)
    x, start = x_T, x_T  # where the network is asked, and where the step to there began
    here: Known | None = None
    before: Known | None = None
    for i in progress(range(len(timesteps) - 1, -1, -1)):
        n = Noisy(x_t=x, t=torch.full((len(x),), timesteps[i], device=x.device))
        x_0 = process.x0(denoise(x, n.t), n)
        now = Known(float(abar[timesteps[i]]), x_0 if correct is None else correct(x_0, n.t))
        if sampling.sampler == "unipc" and here is not None:
            x = here.reached(start, now.abar, corrected_mean(here, before, now))
        start, before, here = x, here, now
        to = float(abar[timesteps[i - 1] if i > 0 else 0])
        x = here.reached(x, to, predicted_mean(here, before, to))
    return x


SAMPLERS = {"ddpm": sample_ddpm, "ddim": sample_ddim, "dpmpp": sample_multistep, "unipc": sample_multistep}
DEFAULTS = Sampling()
