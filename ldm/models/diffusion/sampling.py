"""Samplers: plain functions of a denoiser, a starting point and a schedule."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from basicsr.utils.errors import UserError
from ldm.models.diffusion import objective
from ldm.models.diffusion.schedule import Schedule, respace, space_timesteps
from ldm.models.diffusion.tiling import Denoiser, StructuredDenoiser

# A shape -> standard-normal noise of that shape
Noise = Callable[[torch.Size], Tensor]
# Wraps the iteration over steps, to show progress
Progress = Callable[[Iterable[int]], Iterable[int]]


def noise_of_pictures(generators: Sequence[torch.Generator], device: torch.device | str) -> Noise:
    """Noise (B, …) of which each picture's part comes from a generator of its own, whatever it is batched with.

    Drawn where the generators are, on the CPU as a rule, so that a seed means the same on every device.
    """
    return lambda shape: torch.stack(
        [torch.randn(shape[1:], generator=rng, device=rng.device) for rng in generators]
    ).to(device)


def steered(
    unet: nn.Module, structure_encoder: nn.Module, context: Tensor, uncond: Tensor | None, guidance_scale: float
) -> StructuredDenoiser:
    """A denoiser of the U-Net, in the precision of its weights, steered by text and by the structure of the LQ latent.

    context, uncond: (B, L, context_dim), to go towards and, with `guidance_scale` s other than 1, away from:
    uncond + s (cond - uncond) of the network's output (Ho & Salimans 2022, equation 6). The structure is encoded once
    for both. Latents may come as several tiles of each of the B pictures, tile by tile.
    Raises UserError for guidance without `uncond`.
    """
    if guidance_scale != 1 and uncond is None:
        raise UserError(f"guidance_scale {guidance_scale} needs a negative prompt's context (uncond)")
    dtype = next(unet.parameters()).dtype

    def denoise(x: Tensor, t: Tensor, z_lq: Tensor) -> Tensor:
        structure = structure_encoder(z_lq.to(dtype), t)

        def predict(text: Tensor) -> Tensor:
            return unet(x.to(dtype), t, text.to(dtype).repeat(len(x) // len(text), 1, 1), structure).to(x.dtype)

        output = predict(context)
        if guidance_scale == 1 or uncond is None:
            return output
        away = predict(uncond)
        return away + guidance_scale * (output - away)

    return denoise


def started_at(betas: np.ndarray, start_t: int | None) -> np.ndarray:
    """The process `betas` up to and with step `start_t`, where sampling is to start; null means all of it.

    Raises UserError where there is no such step.
    """
    if start_t is None:
        return betas
    if not 0 <= start_t < len(betas):
        raise UserError(f"start_t is {start_t}; choose a step of the process, 0 to {len(betas) - 1}")
    return betas[: start_t + 1]


def noised_to_the_end(z_lq: Tensor, betas: np.ndarray, noise: Noise) -> Tensor:
    """x_T of q(x_T | x_0 = z_lq), T the last step of the process `betas`: where sampling starts (StableSR)."""
    last = torch.full((len(z_lq),), len(betas) - 1, device=z_lq.device)
    return Schedule.from_betas(betas).to(z_lq.device).q_sample(z_lq, last, noise(z_lq.shape))


@torch.no_grad()
def sample_ddpm(
    denoise: Denoiser,
    x_T: Tensor,
    betas: np.ndarray,
    kind: str,
    steps: int,
    noise: Noise,
    progress: Progress = iter,
) -> Tensor:
    """Ancestral sampling (Ho et al. 2020, algorithm 2) over `steps` evenly spaced steps of the process `betas`.

    x_T (B, 4, h, w) is where to start, at the last step; returns x_0. The denoiser is told the original timesteps.
    """
    kept = space_timesteps(len(betas), steps)
    schedule = Schedule.from_betas(respace(betas, kept)).to(x_T.device)
    x = x_T
    for i in progress(range(steps - 1, -1, -1)):
        t = torch.full((len(x),), i, device=x.device)
        output = denoise(x, torch.full_like(t, kept[i]))
        x_start = objective.x0_from_output(kind, schedule, output, x, t)
        x = schedule.posterior_mean(x_start, x, t)
        if i > 0:
            x = x + torch.exp(0.5 * schedule.posterior_log_variance_clipped[i]) * noise(x.shape)
    return x


@torch.no_grad()
def sample_ddim(
    denoise: Denoiser,
    x_T: Tensor,
    betas: np.ndarray,
    kind: str,
    steps: int,
    noise: Noise,
    eta: float = 0.0,
    progress: Progress = iter,
) -> Tensor:
    """DDIM (Song et al. 2021, equation 12) with a uniform stride of T // steps, counted from step 0.

    eta 0 is deterministic, eta 1 as noisy as ancestral sampling. x_T and the result are (B, 4, h, w).
    Raises UserError for a step count out of range, or eta outside [0, 1].
    """
    if not 0 <= eta <= 1:
        raise UserError(f"DDIM's eta is {eta}; choose 0 (deterministic) to 1 (as noisy as ancestral sampling)")
    if not 1 <= steps <= len(betas):
        raise UserError(f"cannot take {steps} DDIM steps of {len(betas)}; choose 1 to {len(betas)}")
    timesteps = range(0, len(betas), len(betas) // steps)
    schedule = Schedule.from_betas(betas).to(x_T.device)
    abar = np.cumprod(1.0 - betas)
    x = x_T
    for i in progress(range(len(timesteps) - 1, -1, -1)):
        now, before = abar[timesteps[i]], abar[timesteps[i - 1] if i > 0 else 0]
        t = torch.full((len(x),), timesteps[i], device=x.device)
        output = denoise(x, t)
        eps = objective.eps_from_output(kind, schedule, output, x, t)
        x_start = objective.x0_from_output(kind, schedule, output, x, t)
        sigma = eta * np.sqrt((1 - before) / (1 - now) * (1 - now / before))
        x = np.sqrt(before) * x_start + np.sqrt(1 - before - sigma**2) * eps
        if sigma > 0:
            x = x + sigma * noise(x.shape)
    return x
