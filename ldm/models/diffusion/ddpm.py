"""StableSR's stage 1: wiring, buffers and Lightning's hooks. The mathematics is in the modules beside this one."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, cast

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from basicsr.data.pair_pool import Pair
from basicsr.utils import checks
from basicsr.utils.edge_utils import EdgeMapGenerator
from basicsr.utils.errors import fields_named
from basicsr.utils.rng import torch_rng
from ldm.models.diffusion.checkpoint import StateDict, load_checkpoint
from ldm.models.diffusion.conditioning import TextConditioner
from ldm.models.diffusion.edge_term import NOT_AT_EVERY_STEP, EdgeTerm
from ldm.models.diffusion.first_stage import FirstStage
from ldm.models.diffusion.fork_api import DiffusionWrapper, ForkApi
from ldm.models.diffusion.guidance import Guidance, guided_denoiser
from ldm.models.diffusion.last_value import LastValue
from ldm.models.diffusion.process import Process, check_parameterization
from ldm.models.diffusion.sampling import DEFAULTS, SAMPLERS, Noise, Progress, Sampling, initial_latent, truncated
from ldm.models.diffusion.schedule import Schedule, make_betas, respace, space_timesteps
from ldm.models.diffusion.tiling import Denoiser, Tiling, tiled
from ldm.models.diffusion.training_loss import TrainingLoss
from ldm.modules.ema import LitEma
from ldm.modules.losses.edge_loss import EdgeLoss
from ldm.modules.losses.edge_options import EdgeOptions
from ldm.modules.losses.edge_weight import EdgeWeight, EdgeWeightLike
from ldm.modules.spade import SPADE
from ldm.published import takes_published_keys
from ldm.util import instantiate_from_config

log = logging.getLogger(__name__)

# Parts that a checkpoint may lack as a whole: Stable Diffusion 2.1 has no SPADE and no structure encoder.
MAY_BE_NEW: Mapping[str, Callable[[str], bool]] = {
    "SPADE": lambda key: ".spade." in key,
    "structure": lambda key: key.startswith("structcond_stage_model."),
    "EMA": lambda key: key.startswith("model_ema."),
}


@dataclass(frozen=True)
class Latents:
    """A pair in latent space, both (B, 4, H/f, W/f) and scaled."""

    z_gt: Tensor
    z_lq: Tensor


class LatentDiffusionSRTextWT(ForkApi, pl.LightningModule):
    """A latent diffusion model for super-resolution, steered by text and by a time-aware encoder of the LQ latent.

    Trained are the SPADE layers of the U-Net and the whole time-aware encoder; with `unfrozen_diff` the whole U-Net.

    Args that shape the training:
        edge_loss_weight: weight of the edge loss, which is logged as train/loss_edge (`EdgeLoss`), or `auto:f` for a
            fraction f of the main loss's gradient; 0 leaves it out altogether.
        edge: when, where, against what and how strongly: `EdgeOptions`. Flat, each key begins with `edge_`.
        loss: the main loss: `TrainingLoss`. Its keys may stand flat, too.
        ckpt_path, ignore_keys: weights to start from, and key prefixes to leave out; null means random weights.
        time_replace: how many of the `timesteps` steps to train on, evenly spaced.
        parameterization: what the U-Net predicts: eps, v or x0.
        prompt, keep_text_encoder: the text of every training picture; the text tower is let go once it is encoded,
            unless `keep_text_encoder`. Its weights wait in host memory and are in every saved checkpoint.
        use_ema: keep an exponential moving average of the U-Net, used for validation and sampling.
        learning_rate: AdamW's.

    Published YAMLs carry more keys; `ldm.published` says what becomes of them.

    Raises:
        FieldError: a value that cannot be.
    """

    original_timesteps: Tensor

    @takes_published_keys
    def __init__(
        self,
        first_stage_config: Mapping[str, Any],
        cond_stage_config: Mapping[str, Any],
        structcond_stage_config: Mapping[str, Any],
        unet_config: Mapping[str, Any],
        *,
        edge_loss_weight: EdgeWeightLike = 0.0,
        edge: Mapping[str, Any] | None = None,
        loss: Mapping[str, Any] | None = None,
        ckpt_path: str | None = None,
        ignore_keys: Sequence[str] = (),
        unfrozen_diff: bool = False,
        parameterization: str = "eps",
        timesteps: int = 1000,
        time_replace: int | None = None,
        linear_start: float = 0.00085,
        linear_end: float = 0.0120,
        scale_factor: float = 0.18215,
        prompt: str = "",
        keep_text_encoder: bool = False,
        use_ema: bool = False,
        learning_rate: float = 5e-5,
    ) -> None:
        super().__init__()
        check_parameterization(parameterization)
        checks.number("scale_factor", scale_factor, 1e-6)
        checks.interval("[linear_start, linear_end]", (linear_start, linear_end), 1e-8, 0.999)
        checks.whole_number("timesteps", timesteps, 2)
        weight, options = EdgeWeight.parse(edge_loss_weight), EdgeOptions(**(edge or {}))
        self.training_loss = TrainingLoss(**(loss or {}))
        self.learning_rate = learning_rate
        self.parameterization = parameterization
        self.prompt = prompt
        self.keep_text_encoder = keep_text_encoder
        self._released_text_tower: StateDict = {}

        self.betas_of_process = make_betas(timesteps, linear_start, linear_end)
        kept = timesteps if time_replace is None else checks.whole_number("time_replace", time_replace, 2, timesteps)
        self._register_process(space_timesteps(timesteps, kept))
        options.check_process(self.original_timesteps, self.process.snr(torch.arange(kept)))

        self.model = DiffusionWrapper(instantiate_from_config(unet_config))
        self.first_stage_model = instantiate_from_config(first_stage_config)
        self.cond_stage_model: nn.Module | None = instantiate_from_config(cond_stage_config)
        self.structcond_stage_model = instantiate_from_config(structcond_stage_config)
        self.text = TextConditioner(self.cond_stage_model)
        self.first_stage = FirstStage(self.first_stage_model, scale_factor, recompute=options.decoder_checkpoint)
        self.edge_loss = EdgeLoss(EdgeMapGenerator(), options)
        self.edge_term = EdgeTerm(weight, self.edge_loss, self.first_stage.decode, timesteps=timesteps)
        self.now_and_then = nn.ModuleDict({name: LastValue() for name in NOT_AT_EVERY_STEP})
        self._freeze(unfrozen_diff)
        self.model_ema = LitEma(self.model) if use_ema else None
        self._load(ckpt_path, ignore_keys)
        self.train()
        if self.use_edge_loss:
            log.info("Edge loss enabled with weight: %s", weight)

    # Construction

    def _register_process(self, kept: list[int]) -> None:
        """Make the constants of the process that visits the steps `kept` buffers."""
        schedule = Schedule.from_betas(respace(self.betas_of_process, kept))
        self.register_buffer("original_timesteps", torch.tensor(kept), persistent=False)
        for name in Schedule.names():
            self.register_buffer(name, getattr(schedule, name))

    def _freeze(self, unfrozen_diff: bool) -> None:
        """Leave gradients to what stage 1 trains."""
        self._trainable: list[nn.Module] = [module for module in self.model.modules() if isinstance(module, SPADE)]
        if unfrozen_diff:
            self._trainable = [self.model]
        self._trainable.append(self.structcond_stage_model)
        self.requires_grad_(False)
        for module in self._trainable:
            module.requires_grad_(True)

    def _load(self, ckpt_path: str | None, ignore_keys: Sequence[str]) -> None:
        if ckpt_path is None:
            log.warning("model.params.ckpt_path is null: the U-Net starts from random weights")
            return
        # The schedule is the config's; a checkpoint trained with another number of steps may start this one.
        report = load_checkpoint(self, ckpt_path, ignore_keys, lambda state: state | vars(self.schedule), MAY_BE_NEW)
        if self.model_ema is not None and any(MAY_BE_NEW["EMA"](key) for key in report.new):
            self.model_ema.reset(self.model)

    @property
    def scale_factor(self) -> float:
        """What latents are multiplied by after the autoencoder."""
        return self.first_stage.scale_factor

    @property
    def schedule(self) -> Schedule:
        """The training process's constants, on the model's device."""
        return Schedule(**{name: getattr(self, name) for name in Schedule.names()})

    @property
    def process(self) -> Process:
        """The training process, on the model's device."""
        return Process(self.schedule, self.original_timesteps, self.parameterization)

    @property
    def lvlb_weights(self) -> Tensor:
        """The weights (T,) of `loss_vlb`, under their published name."""
        return self.process.vlb_weights()

    def train(self, mode: bool = True) -> "LatentDiffusionSRTextWT":
        """Set training mode, in which everything frozen stays in evaluation mode."""
        super().train(mode)
        for child in self.children():
            child.eval()
        for module in self._trainable:
            module.train(mode)
        return self

    # Training

    def on_fit_start(self) -> None:
        """Encode the one prompt of training, then let the text tower go."""
        self.contexts([self.prompt])
        if not self.keep_text_encoder:
            weights = {f"cond_stage_model.{name}": value for name, value in self.text.let_go().items()}
            self._released_text_tower |= weights
            self.cond_stage_model = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A saved checkpoint is complete: the text tower's weights are in it though the tower was let go."""
        checkpoint["state_dict"].update(self._released_text_tower)
        if self.edge_term.balance is not None:
            checkpoint["edge_balance"] = self.edge_term.balance.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the edge loss's weight where gradients decide it."""
        if self.edge_term.balance is not None and "edge_balance" in checkpoint:
            self.edge_term.balance.load_state_dict(checkpoint["edge_balance"])

    def training_step(self, pair: Pair, batch_idx: int) -> Tensor:
        """The loss on one batch; all its randomness is a function of seed, rank, epoch and batch."""
        place = (torch.initial_seed(), self.global_rank, self.current_epoch, batch_idx)
        with fields_named(lambda field: f"model.params.{field}"):  # whoever trains has a config
            loss, parts = self._step(pair, torch_rng(self.device, "training step", *place))
        if self.use_edge_loss:
            for name, last in self.now_and_then.named_children():
                value = parts.pop(f"train/{name}", None)
                self.log(f"train/{name}", cast(LastValue, last).of_step(value))
        self.log_dict(parts, batch_size=len(pair))
        return loss

    def validation_step(self, pair: Pair, batch_idx: int) -> None:
        """Log the denoising losses; timesteps and noise are the same at every validation."""
        rng = torch_rng(self.device, "validation step", torch.initial_seed(), batch_idx)
        with self.ema_scope():
            _, parts = self._step(pair, rng)
        self.log_dict(parts, batch_size=len(pair), sync_dist=True)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Follow every optimiser step by one of the moving average."""
        super().optimizer_step(*args, **kwargs)
        if self.model_ema is not None:
            self.model_ema.update(self.model)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW over what is trained."""
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=self.learning_rate)

    def _step(self, pair: Pair, rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        latents = self.encode(pair, rng)
        t = torch.randint(len(self.original_timesteps), (len(pair),), generator=rng, device=self.device)
        t_original = self.original_timesteps[t]
        noise = torch.randn(latents.z_gt.shape, generator=rng, device=self.device)
        return self.p_losses(
            x_start=latents.z_gt,
            cond=self.context(len(pair)),
            struct_cond=self.structcond_stage_model(latents.z_lq, t_original),
            t=t,
            t_ori=t_original,
            noise=noise,
            gt_pm1=pair.gt_pm1,
            rng=rng,
        )

    def encode(self, pair: Pair, rng: torch.Generator) -> Latents:
        """Pixels to scaled latents, without gradient."""
        z_gt = self.first_stage.encode(pair.gt_pm1, rng)
        return Latents(z_gt=z_gt, z_lq=self.first_stage.encode(pair.lq_pm1, rng))

    def decode(self, z: Tensor) -> Tensor:
        """Scaled latents to pictures, nominally in [-1, 1], differentiable in z."""
        return self.first_stage.decode(z)

    def contexts(self, prompts: Sequence[str]) -> Tensor:
        """Of B prompts, (B, L, context_dim). Raises UserError for a new prompt where the text tower was let go."""
        return self.text(prompts).to(self.device)

    def context(self, batch_size: int) -> Tensor:
        """The training prompt's context for a batch: (B, L, context_dim)."""
        return self.contexts([self.prompt] * batch_size)

    def p_losses(
        self,
        x_start: Tensor,
        cond: Tensor,
        struct_cond: Mapping[str, Tensor],
        t: Tensor,
        t_ori: Tensor,
        noise: Tensor | None = None,
        gt_pm1: Tensor | None = None,
        rng: torch.Generator | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Noise x_start to step t, predict, and compare.

        x_start (B, 4, h, w) scaled latents; cond (B, L, context_dim); t (B,) steps of the schedule, t_ori the same in
        the original process, which the networks are told. The edge loss's options may need gt_pm1, the true pictures
        (B, 3, f h, f w), and draw windows from rng. Returns the loss and its parts under `train/…`, or `val/…` in
        evaluation mode, where the edge loss is left out.
        """
        z_gt, noise = x_start, torch.randn_like(x_start) if noise is None else noise
        process = self.process
        n = replace(process.noised(z_gt, t=t, noise=noise), t_original=t_ori)
        output = self.model.diffusion_model(n.x_t, n.t_original, cond, struct_cond)
        report = self.training_loss(process, n, output)
        if self.training and self.use_edge_loss:
            report = self.edge_term(report, process, n, output, gt_pm1=gt_pm1, step=self.global_step, rng=rng)
        split = "train" if self.training else "val"
        return report.total, {f"{split}/{name}": value for name, value in report.parts.items()}

    # Looking

    def ema_scope(self) -> AbstractContextManager[None]:
        """Within this context the U-Net has its averaged parameters, where there are any."""
        return self.model_ema.applied_to(self.model) if self.model_ema is not None else nullcontext()

    @torch.no_grad()
    def predict_x0(self, latents: Latents, step: int, rng: torch.Generator) -> Tensor:
        """The clean latents that the U-Net sees in `latents.z_gt`, noised to one step of the schedule."""
        t = torch.full((len(latents.z_gt),), step, device=self.device)
        noise = torch.randn(latents.z_gt.shape, generator=rng, device=self.device)
        n = self.process.noised(latents.z_gt, t=t, noise=noise)
        structure = self.structcond_stage_model(latents.z_lq, n.t_original)
        output = self.model.diffusion_model(n.x_t, n.t_original, self.context(len(t)), structure)
        return self.process.x0(output, n)

    @torch.no_grad()
    def edge_probe(self, pair: Pair) -> dict[str, float]:
        """The edge loss's terms on a pair, averaged over four fixed timesteps with fixed noise, whatever its weight."""
        rng = torch_rng(self.device, "edge probe")
        latents = self.encode(pair, rng)
        gt_pm1 = self.decode(latents.z_gt)
        steps = [len(self.original_timesteps) * eighth // 8 for eighth in (1, 3, 5, 7)]
        with self.ema_scope():
            terms = [self.edge_loss(self.decode(self.predict_x0(latents, step, rng)), gt_pm1) for step in steps]
        return {
            "loss_edge": float(torch.stack([term.loss for term in terms]).mean()),
            "edge_map_mse": float(torch.stack([term.edge_map_mse for term in terms]).mean()),
        }

    @torch.no_grad()
    def log_images(self, pair: Pair, n: int = 4, steps: int = 20) -> dict[str, Tensor]:
        """What the model makes of the first n of a pair: pictures (n, 3, H, W) in [-1, 1], by label.

        `x0_pred` is the one-step prediction from a quarter of the process, `sample` a DDIM sample of `steps` steps.
        With the edge loss on there are also its weight map over the true picture and, weighted by it, its error.
        """
        pair = pair[:n]
        rng = torch_rng(self.device, "log images")
        with self.ema_scope():
            latents = self.encode(pair, rng)
            x0_pred = self.decode(self.predict_x0(latents, len(self.original_timesteps) // 4, rng))
            guidance, sampling = Guidance(self.context(len(pair))), Sampling(steps, "ddim")
            z = self.sample(latents.z_lq, guidance, sampling, noise=self.noise(rng))
        images = {"lq": pair.lq_pm1, "gt": pair.gt_pm1, "x0_pred": x0_pred, "sample": self.decode(z)}
        decoded = self.decode(latents.z_gt)
        for name, image in (("edge_gt", decoded), ("edge_pred", x0_pred)):
            images[name] = self.edge_loss.generator.edges_01(image).expand_as(pair.gt_pm1) * 2 - 1
        if self.use_edge_loss:
            truth = decoded if self.edge_loss.options.target == "decoded" else pair.gt_pm1
            images["edge_weight"], images["edge_error"] = self.edge_loss.pictures(x0_pred, truth)
        return {name: image.clamp(-1, 1) for name, image in images.items()}

    def noise(self, rng: torch.Generator | None = None) -> Noise:
        """A source of standard-normal noise on the model's device."""
        return lambda shape: torch.randn(shape, generator=rng, device=self.device)

    @torch.no_grad()
    def sample(
        self,
        z_lq: Tensor,
        guidance: Guidance,
        sampling: Sampling = DEFAULTS,
        *,
        tiling: Tiling | None = None,
        x_T: Tensor | None = None,
        noise: Noise | None = None,
        progress: Progress = iter,
    ) -> Tensor:
        """Clean latents (B, 4, h, w) for the LQ latents z_lq of that shape.

        x_T: the latent to start with, by default z_lq noised to the step where sampling starts. noise: shape -> the
        noise of each step. tiling: None means the whole canvas at once.

        Raises:
            UserError: a step count out of range, or tiles that overlap too much.
        """
        noise = noise or self.noise()
        betas = truncated(self.betas_of_process, sampling.start_t)
        denoise = guided_denoiser(self.model.diffusion_model, self.structcond_stage_model, guidance)
        canvas: Denoiser = lambda x, t: denoise(x, t, z_lq)  # noqa: E731
        if tiling is not None:
            canvas = tiled(denoise, z_lq, tiling)
        x_T = initial_latent(z_lq, betas, noise) if x_T is None else x_T
        return SAMPLERS[sampling.sampler](
            canvas, x_T, betas, sampling, parameterization=self.parameterization, noise=noise, progress=progress
        )
