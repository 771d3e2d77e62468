"""What scripts written against StableSR and its edge fork call on the model: their names over our parts."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from basicsr.utils.edge_utils import EdgeMapGenerator
from ldm.models.diffusion.edge_term import EdgeTerm
from ldm.models.diffusion.first_stage import FirstStage
from ldm.models.diffusion.process import Noisy, Process
from ldm.modules.distributions.distributions import DiagonalGaussianDistribution


class DiffusionWrapper(nn.Module):
    """Holds the U-Net under the name that checkpoints give it."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.diffusion_model = unet


class ForkApi:
    """Members under their published names and arguments; latents are scaled, (B, 4, h, w), pictures in [-1, 1].

    `t` counts the model's own schedule, 0 to T - 1, but for `apply_model`, which takes original timesteps.
    """

    model: DiffusionWrapper
    first_stage: FirstStage
    edge_term: EdgeTerm

    @property
    def process(self) -> Process:
        """The training process."""
        raise NotImplementedError

    def contexts(self, prompts: Sequence[str]) -> Tensor:
        """Of B prompts, (B, L, context_dim)."""
        raise NotImplementedError

    # Pixels and latents

    @torch.no_grad()
    def encode_first_stage(self, x: Tensor) -> DiagonalGaussianDistribution:
        """Pictures (B, 3, H, W) -> the posterior over unscaled latents, without gradient."""
        return self.first_stage.vae.encode(x)

    def get_first_stage_encoding(self, encoder_posterior: DiagonalGaussianDistribution | Tensor) -> Tensor:
        """A posterior, of which a sample is drawn, or unscaled latents -> scaled latents."""
        if not isinstance(encoder_posterior, Tensor):
            encoder_posterior = encoder_posterior.sample()
        return self.first_stage.scale_factor * encoder_posterior

    @torch.no_grad()
    def decode_first_stage(self, z: Tensor) -> Tensor:
        """Latents -> pictures (B, 3, f h, f w), not clamped, without gradient."""
        return self.first_stage.decode(z)

    def differentiable_decode_first_stage(self, z: Tensor) -> Tensor:
        """The same with the gradient to z; the decoder's own weights are frozen."""
        return self.first_stage.decode(z)

    # Networks

    def apply_model(self, x_noisy: Tensor, t: Tensor, cond: Tensor, struct_cond: Mapping[str, Tensor]) -> Tensor:
        """The U-Net's output for x_noisy at the original timesteps t (B,); see `p_losses` for the others."""
        output: Tensor = self.model.diffusion_model(x_noisy, t, cond, struct_cond)
        return output

    def get_learned_conditioning(self, c: Sequence[str]) -> Tensor:
        """Prompts -> contexts (B, L, context_dim)."""
        return self.contexts(c)

    # The process

    def q_sample(self, x_start: Tensor, t: Tensor, noise: Tensor | None = None) -> Tensor:
        """x_t of q(x_t | x_0) (Ho et al. 2020, equation 4); the noise is drawn where none is given."""
        return self.process.schedule.q_sample(x_start, t=t, noise=torch.randn_like(x_start) if noise is None else noise)

    def predict_start_from_noise(self, x_t: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_0 from x_t and its noise (Ho et al. 2020, equation 15), whatever the model itself predicts."""
        return replace(self.process, parameterization="eps").x0(noise, Noisy(x_t=x_t, t=t))

    def predict_start_from_z_and_v(self, x_t: Tensor, t: Tensor, v: Tensor) -> Tensor:
        """x_0 from x_t and its velocity (Salimans & Ho 2022, appendix D), whatever the model itself predicts."""
        return replace(self.process, parameterization="v").x0(v, Noisy(x_t=x_t, t=t))

    # The edge loss, which is logged as train/loss_edge

    @property
    def edge_loss_weight(self) -> float:
        """The w of loss = main + w train/loss_edge, before warm-up; 0 where there is no edge loss.

        With `edge_loss_weight: auto:f` it is the weight that the gradients of the steps so far called for, which
        changes with every step; 1 before the first.
        """
        return self.edge_term.weight

    @property
    def use_edge_loss(self) -> bool:
        """Whether training has an edge loss."""
        return self.edge_term.weight > 0

    @property
    def edge_generator(self) -> EdgeMapGenerator:
        """What makes the edge maps of the loss."""
        return self.edge_term.loss.generator
