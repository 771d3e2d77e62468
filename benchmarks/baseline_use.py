"""The baseline at work: a training step, a sample and an upscaled picture as the published code makes them.

To be used after `baseline.publish`. Draws are those of our own code, in its order, so that results agree.

- LQ and GT are encoded one after the other; the text tower stays, in float32, and encodes the prompt at every training
  step; original timesteps are looked up one by one;
- of the edge loss, both decodings are of the whole frame, and Canny is OpenCV's;
- tiles go through the networks one after the other, as do the two texts of guidance, and the tiles' weights are
  computed at every sampling step; the autoencoder is given the whole picture.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from basicsr.data.pair_pool import Pair
from basicsr.utils.edge_utils import EdgeMapGenerator
from basicsr.utils.rng import torch_rng
from ldm.inference.color_fix import adaptive_instance_normalization
from ldm.models.diffusion.ddpm import LatentDiffusionSRTextWT
from ldm.models.diffusion.sampling import Noise
from ldm.models.diffusion.schedule import Schedule, respace, space_timesteps
from ldm.models.diffusion.tiling import tile_starts

EDGE_WEIGHT, BASE_WEIGHT = 0.1, 0.1


def encode(model: LatentDiffusionSRTextWT, x_pm1: Tensor, rng: torch.Generator) -> Tensor:
    """A scaled sample of the posterior (B, 4, h, w)."""
    vae = model.first_stage_model
    mean, logvar = torch.chunk(vae.quant_conv(vae.encoder(x_pm1)), 2, dim=1)
    deviation = torch.exp(0.5 * torch.clamp(logvar, -30.0, 20.0))
    noise = torch.randn(mean.shape, generator=rng, device=rng.device).to(mean.device)
    return model.scale_factor * (mean + deviation * noise)


def decode(model: LatentDiffusionSRTextWT, z: Tensor) -> Tensor:
    """Scaled latents to pictures (B, 3, f h, f w)."""
    vae = model.first_stage_model
    decoded: Tensor = vae.decoder(vae.post_quant_conv(1.0 / model.scale_factor * z))
    return decoded


def gathered(values: Tensor, t: Tensor) -> Tensor:
    """values[t] as (B, 1, 1, 1)."""
    return values.gather(-1, t).reshape(len(t), 1, 1, 1)


def clean_latent(schedule: Schedule, output: Tensor, x_t: Tensor, t: Tensor, parameterization: str) -> Tensor:
    """x_0 (Ho et al. 2020, equation 15; for v Salimans & Ho 2022, appendix D)."""
    if parameterization == "eps":
        scale, other = schedule.sqrt_recip_alphas_cumprod, schedule.sqrt_recipm1_alphas_cumprod
    else:
        scale, other = schedule.sqrt_alphas_cumprod, schedule.sqrt_one_minus_alphas_cumprod
    return gathered(scale, t) * x_t - gathered(other, t) * output


@dataclass(frozen=True)
class Training:
    """Steps of stage 1: loss_simple with a fixed variance, the variational bound for the log, and the edge loss."""

    model: LatentDiffusionSRTextWT
    edge_loss: bool

    def __call__(self, pair: Pair, index: int) -> Tensor:
        """The loss of one step on a batch."""
        model, device = self.model, pair.gt_pm1.device
        rng = torch_rng(device, "training step", torch.initial_seed(), 0, 0, index)
        with torch.no_grad():
            z_gt, z_lq = encode(model, pair.gt_pm1, rng), encode(model, pair.lq_pm1, rng)
            context = model.cond_stage_model([""] * len(pair))  # type: ignore[misc]
        steps = model.original_timesteps.tolist()
        t = torch.randint(len(steps), (len(pair),), generator=rng, device=device)
        t_original = torch.tensor([steps[int(each)] for each in t.cpu()], device=device)
        noise = torch.randn(z_gt.shape, generator=rng, device=device)
        structure = model.structcond_stage_model(z_lq, t_original)
        return self.loss(z_gt, noise, t, t_original, (context, structure))

    def loss(
        self, z_gt: Tensor, noise: Tensor, t: Tensor, t_original: Tensor, conditions: tuple[Tensor, dict[str, Tensor]]
    ) -> Tensor:
        """Of true latents at steps t with that noise."""
        model, schedule = self.model, self.model.schedule
        signal, rest = gathered(schedule.sqrt_alphas_cumprod, t), gathered(schedule.sqrt_one_minus_alphas_cumprod, t)
        x_t = signal * z_gt + rest * noise
        output = model.model.diffusion_model(x_t, t_original, *conditions)
        target = noise if model.parameterization == "eps" else signal * noise - rest * z_gt
        simple = F.mse_loss(output, target, reduction="none").mean([1, 2, 3])
        logvar = torch.zeros(len(schedule.betas), device=t.device)[t]
        loss = (simple / torch.exp(logvar) + logvar).mean()
        loss = loss + 0.0 * (model.lvlb_weights[t] * simple).mean()
        if not self.edge_loss:
            return loss
        predicted = decode(model, clean_latent(schedule, output, x_t, t, model.parameterization))
        return loss + EDGE_WEIGHT * edge_loss(model, predicted, z_gt)


def edge_loss(model: LatentDiffusionSRTextWT, predicted: Tensor, z_gt: Tensor) -> Tensor:
    """mean((pred - gt)^2 (E + 0.1)), with the maps of both, one picture after the other."""
    canny = EdgeMapGenerator(backend="opencv")
    with torch.no_grad():
        truth = decode(model, z_gt)
        edges, _unused = (
            torch.cat([canny.edges_01(picture[None]) for picture in pictures]).repeat(1, 3, 1, 1)
            for pictures in (truth, predicted.detach())
        )
    return ((predicted - truth) ** 2 * (edges + BASE_WEIGHT)).mean()


@dataclass(frozen=True)
class Sampler:
    """Ancestral sampling over respaced steps, on the whole canvas or in tiles of `tile` latent cells."""

    model: LatentDiffusionSRTextWT
    steps: int
    tile: int
    overlap: int
    scale: float = 1.0  # of guidance

    @torch.no_grad()
    def __call__(self, z_lq: Tensor, noise: Noise) -> Tensor:
        """Clean latents (B, 4, h, w)."""
        model, device = self.model, z_lq.device
        prompts = 1 if self.scale == 1 else 2
        texts = [model.cond_stage_model([""]).to(device) for _ in range(prompts)]  # type: ignore[misc]
        context, uncond = texts[0], texts[-1]
        betas = model.betas_of_process
        kept = space_timesteps(len(betas), self.steps)
        whole, schedule = (Schedule.from_betas(each).to(device) for each in (betas, respace(betas, kept)))
        x = whole.q_sample(z_lq, t=torch.full((len(z_lq),), len(betas) - 1, device=device), noise=noise(z_lq.shape))
        for index in reversed(range(self.steps)):
            t, told = (torch.full((len(x),), value, device=device) for value in (index, kept[index]))
            output = self.predict(x, z_lq, told, context, uncond)
            x_0 = clean_latent(schedule, output, x, t, model.parameterization)
            mean = gathered(schedule.posterior_mean_coef1, t) * x_0 + gathered(schedule.posterior_mean_coef2, t) * x
            x = mean
            if index > 0:
                x = mean + torch.exp(0.5 * gathered(schedule.posterior_log_variance_clipped, t)) * noise(x.shape)
        return x

    def predict(self, x: Tensor, z_lq: Tensor, t: Tensor, context: Tensor, uncond: Tensor) -> Tensor:
        """The U-Net's output for a canvas, tile after tile, with nothing kept from the step before."""
        tile = min(self.tile, *x.shape[-2:])
        weights = torch.from_numpy(bell_weights(tile)).float().to(x.device)
        if x.shape[-2:] == (tile, tile):
            return self.network(x, z_lq, t, context, uncond)
        summed, total = torch.zeros_like(x), torch.zeros_like(x)
        for top in tile_starts(x.shape[-2], tile, self.overlap):
            for left in tile_starts(x.shape[-1], tile, self.overlap):
                place = (..., slice(top, top + tile), slice(left, left + tile))
                summed[place] += weights * self.network(x[place], z_lq[place], t, context, uncond)
                total[place] += weights
        return summed / total

    def network(self, x: Tensor, z_lq: Tensor, t: Tensor, context: Tensor, uncond: Tensor) -> Tensor:
        """One tile, with guidance where its scale is not 1."""
        unet = self.model.model.diffusion_model
        structure = self.model.structcond_stage_model(z_lq, t)
        output: Tensor = unet(x, t, context.repeat(len(x), 1, 1), structure)
        if self.scale == 1:
            return output
        without: Tensor = unet(x, t, uncond.repeat(len(x), 1, 1), structure)
        return without + self.scale * (output - without)


def bell_weights(side: int) -> np.ndarray:
    """The Gaussian weights of a tile, element by element; the axes' centres differ by half a cell, as published."""
    x = [math.exp(-((i - (side - 1) / 2) ** 2) / side**2 / (2 * 0.01)) for i in range(side)]
    y = [math.exp(-((i - side / 2) ** 2) / side**2 / (2 * 0.01)) for i in range(side)]
    return np.outer(y, x)


@torch.no_grad()
def upscaled(sampler: Sampler, picture_01: Tensor, factor: int, noise_rng: torch.Generator) -> Tensor:
    """(1, 3, h, w) in [0, 1] to `factor` times the size: enlarge, encode, sample, decode, correct the colours."""
    model, device = sampler.model, picture_01.device
    size = [factor * side for side in picture_01.shape[-2:]]
    lq_pm1 = F.interpolate(picture_01, size=size, mode="bicubic").clamp(0, 1) * 2 - 1
    z_lq = encode(model, lq_pm1, noise_rng)
    z = sampler(z_lq, lambda shape: torch.randn(shape, generator=noise_rng).to(device))
    image = adaptive_instance_normalization(decode(model, z), lq_pm1)
    return ((image + 1) / 2).clamp(0, 1)
