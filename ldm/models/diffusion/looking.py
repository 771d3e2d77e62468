"""Looking at a model in the midst of training: predictions, samples, and the figures that tell how edges fare."""

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from basicsr.data.pair_pool import Pair
from basicsr.utils.rng import torch_rng
from ldm.models.diffusion.edge_condition import EdgeCondition, Structure
from ldm.models.diffusion.fork_api import ForkApi
from ldm.models.diffusion.guidance import Guidance
from ldm.models.diffusion.process import Noised
from ldm.models.diffusion.sampling import DEFAULTS, Noise, Sampling


@dataclass(frozen=True)
class Latents:
    """A pair in latent space, all scaled: z_gt and z_lq are (B, 4, H/f, W/f)."""

    z_gt: Tensor
    z_lq: Tensor
    z_struct: Tensor  # (B, C, H/f, W/f), what the time-aware encoder is given: z_lq, edges, or both


class Looking(ForkApi):
    """Members that look and change nothing; all that they draw is fixed."""

    structcond_stage_model: nn.Module
    structure: Structure

    @property
    def edge_condition(self) -> EdgeCondition | None:
        """How the time-aware encoder sees edges; None where it sees none."""
        return self.structure.condition

    def context(self, batch_size: int) -> Tensor:
        """The training prompt's context for a batch: (B, L, context_dim)."""
        raise NotImplementedError

    def ema_scope(self) -> AbstractContextManager[None]:
        """Within this context the U-Net has its averaged parameters, where there are any."""
        raise NotImplementedError

    def encode(self, pair: Pair, rng: torch.Generator) -> Latents:
        """Pixels to scaled latents, without gradient."""
        raise NotImplementedError

    def noise(self, rng: torch.Generator | None = None) -> Noise:
        """A source of standard-normal noise on the model's device."""
        raise NotImplementedError

    def sample(
        self,
        z_lq: Tensor,
        guidance: Guidance,
        sampling: Sampling = DEFAULTS,
        *,
        x_T: Tensor | None = None,
        noise: Noise | None = None,
    ) -> Tensor:
        """Clean latents (B, 4, h, w) for the LQ latents z_lq of that shape."""
        raise NotImplementedError

    @torch.no_grad()
    def predict_x0(self, latents: Latents, step: int, rng: torch.Generator) -> Tensor:
        """The clean latents that the U-Net sees in `latents.z_gt`, noised to one step of the schedule."""
        n = self._noised(latents, step, rng)
        return self.process.x0(self._output(n, latents.z_struct), n)

    @torch.no_grad()
    def edge_probe(self, pair: Pair) -> dict[str, float]:
        """The edge loss's terms on a pair, averaged over four fixed timesteps with fixed noise, whatever its weight.

        An adversarial error is replaced by the squared one: see `EdgeLoss.as_a_measure`.
        """
        rng = torch_rng(pair.gt_pm1.device, "edge probe")
        latents = self.encode(pair, rng)
        gt_pm1, measure = self.first_stage.decode(latents.z_gt), self.edge_term.loss.as_a_measure()
        with self.ema_scope():
            terms = [
                measure(self.first_stage.decode(self.predict_x0(latents, step, rng)), gt_pm1)
                for step in self._fixed_steps()
            ]
        return {
            "loss_edge": float(torch.stack([term.loss for term in terms]).mean()),
            "edge_map_mse": float(torch.stack([term.edge_map_mse for term in terms]).mean()),
        }

    @torch.no_grad()
    def edge_effect(self, pair: Pair) -> dict[str, float]:
        """What the edge condition does on a pair, averaged over four fixed timesteps with fixed noise.

        `effect` is the mean |change of the U-Net's output| when the maps are emptied, `gain` by how much that raises
        the output's mean squared error: above 0 where the maps help.
        """
        rng = torch_rng(pair.gt_pm1.device, "edge effect")
        latents = self.encode(pair, rng)
        z_empty = self.structure(latents.z_lq, rng=rng)
        effects, gains = [], []
        with self.ema_scope():
            for step in self._fixed_steps():
                n = self._noised(latents, step, rng)
                seen, empty = (self._output(n, z_struct) for z_struct in (latents.z_struct, z_empty))
                effects.append((seen - empty).abs().mean())
                target = self.process.target(n)
                gains.append((empty - target).square().mean() - (seen - target).square().mean())
        return {"effect": float(torch.stack(effects).mean()), "gain": float(torch.stack(gains).mean())}

    @torch.no_grad()
    def log_images(self, pair: Pair, n: int = 4, steps: int = 20) -> dict[str, Tensor]:
        """What the model makes of the first n of a pair: pictures (n, 3, H, W) in [-1, 1], by label.

        `x0_pred` is the one-step prediction from a quarter of the process, `sample` a DDIM sample of `steps` steps.
        With edges as a condition there is the map that the model saw; with the edge loss on there are also its weight
        map over the true picture and, weighted by it, its error.
        """
        pair = pair[:n]
        rng = torch_rng(pair.gt_pm1.device, "log images")
        with self.ema_scope():
            latents = self.encode(pair, rng)
            x0_pred = self.first_stage.decode(self.predict_x0(latents, len(self.process.timesteps) // 4, rng))
            noise = self.noise(rng)
            alone = self.edge_condition is not None and self.edge_condition.use == "alone"
            x_T = noise(latents.z_lq.shape) if alone else None  # there is no LQ picture to start from
            guidance = Guidance(self.context(len(pair)), z_struct=latents.z_struct)
            z = self.sample(latents.z_lq, guidance, Sampling(steps, "ddim"), x_T=x_T, noise=noise)
        images = {"lq": pair.lq_pm1, "gt": pair.gt_pm1, "x0_pred": x0_pred, "sample": self.first_stage.decode(z)}
        decoded = self.first_stage.decode(latents.z_gt)
        for name, image in (("edge_gt", decoded), ("edge_pred", x0_pred)):
            images[name] = self.edge_term.loss.generator.edges_01(image).expand_as(pair.gt_pm1) * 2 - 1
        if self.edge_condition is not None:
            images["edge_condition"] = self.edge_condition.map_of_pair(pair)
        if self.use_edge_loss:
            truth = decoded if self.edge_term.loss.options.target == "decoded" else pair.gt_pm1
            images["edge_weight"], images["edge_error"] = self.edge_term.loss.pictures(x0_pred, truth)
        return {name: image.clamp(-1, 1) for name, image in images.items()}

    def _fixed_steps(self) -> list[int]:
        """Four of the schedule's steps, spread evenly."""
        return [len(self.process.timesteps) * eighth // 8 for eighth in (1, 3, 5, 7)]

    def _noised(self, latents: Latents, step: int, rng: torch.Generator) -> Noised:
        z_gt = latents.z_gt
        noise = torch.randn(z_gt.shape, generator=rng, device=z_gt.device)
        return self.process.noised(z_gt, t=torch.full((len(z_gt),), step, device=z_gt.device), noise=noise)

    def _output(self, n: Noised, z_struct: Tensor) -> Tensor:
        structure = self.structcond_stage_model(z_struct, n.t_original)
        output: Tensor = self.model.diffusion_model(n.x_t, n.t_original, self.context(len(n.t)), structure)
        return output.float()
