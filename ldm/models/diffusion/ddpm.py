"""StableSR's stage 1: wiring, buffers and Lightning's hooks. The mathematics is in the modules beside this one."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from basicsr.data.pair_pool import Pair
from basicsr.utils import checks
from basicsr.utils.edge_utils import EdgeMapGenerator
from basicsr.utils.errors import fields_named
from basicsr.utils.rng import torch_rng
from ldm.models.diffusion.checkpoint import FROZEN, StateDict, load_checkpoint, with_own_part
from ldm.models.diffusion.compute import Compute
from ldm.models.diffusion.conditioning import TextConditioner
from ldm.models.diffusion.edge_condition import Structure
from ldm.models.diffusion.edge_term import NOT_AT_EVERY_STEP, EdgeTerm
from ldm.models.diffusion.first_stage import FirstStage
from ldm.models.diffusion.fork_api import DiffusionWrapper
from ldm.models.diffusion.frozen_parts import FrozenParts, put_back
from ldm.models.diffusion.guidance import Guidance, guided_denoiser
from ldm.models.diffusion.last_value import LastValue
from ldm.models.diffusion.latent_pool import Encoded, LatentPool
from ldm.models.diffusion.looking import Latents, Looking
from ldm.models.diffusion.process import Process, check_parameterization
from ldm.models.diffusion.sampling import DEFAULTS, SAMPLERS, Noise, Progress, Sampling, initial_latent, truncated
from ldm.models.diffusion.schedule import Schedule, make_betas, respace
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

FIRST_STAGE = "first_stage_model."

# Parts that a checkpoint may lack as a whole: Stable Diffusion 2.1 has no SPADE and no structure encoder.
MAY_BE_NEW: Mapping[str, Callable[[str], bool]] = {
    "SPADE": lambda key: ".spade." in key,
    "structure": lambda key: key.startswith("structcond_stage_model."),
    "EMA": lambda key: key.startswith("model_ema."),
    "discriminator of edges": lambda key: key.startswith("edge_discriminator."),
}


class LatentDiffusionSRTextWT(Looking, pl.LightningModule):
    """A latent diffusion model for super-resolution, steered by text and by a time-aware encoder of the LQ latent.

    Trained are the SPADE layers of the U-Net and the whole time-aware encoder; with `unfrozen_diff` the whole U-Net.

    Args that shape the training:
        edge_loss_weight: weight of the edge loss, which is logged as train/loss_edge (`EdgeLoss`), or `auto:f` for a
            fraction f of the main loss's gradient; 0 leaves it out altogether.
        edge: when, where, against what and how strongly: `EdgeOptions`. Flat, each key begins with `edge_`.
        edge_condition: an edge map for the time-aware encoder: `EdgeCondition`. An `in_channels` of 8 in
            structcond_stage_config turns it on as it is by default.
        loss, compute: blocks of options whose keys may stand flat, too: `TrainingLoss`, and `Compute`, cheaper steps.
        ckpt_path, ignore_keys: weights to start from (of several the later ones win; null means random ones), and key
            prefixes to leave out.
        time_replace: how many of the `timesteps` steps to train on, evenly spaced; 1 is the last one.
        parameterization: what the U-Net predicts: eps, v or x0. learning_rate: AdamW's.
        prompt, keep_text_encoder: the text of every training picture; the text tower is let go once it is encoded,
            unless `keep_text_encoder`. Its weights wait on the disk and are in every saved checkpoint.
        save_trainable_only: leave what is frozen out of checkpoints, which then need `ckpt_path`'s file beside them.
        use_ema: keep an exponential moving average of the U-Net, used for validation and sampling.

    Published YAMLs carry more keys; `ldm.published` says what becomes of them.

    Raises:
        FieldError: a value that cannot be.
    """

    original_timesteps: Tensor
    _prepared = False  # whether the networks have training's form

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
        edge_condition: Mapping[str, Any] | None = None,
        loss: Mapping[str, Any] | None = None,
        compute: Mapping[str, Any] | None = None,
        ckpt_path: str | Sequence[str] | None = None,
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
        save_trainable_only: bool = False,
        learning_rate: float = 5e-5,
    ) -> None:
        super().__init__()
        check_parameterization(parameterization)
        checks.number("scale_factor", scale_factor, 1e-6)
        checks.interval("[linear_start, linear_end]", (linear_start, linear_end), 1e-8, 0.999)
        checks.whole_number("timesteps", timesteps, 2)
        weight, options = EdgeWeight.parse(edge_loss_weight), EdgeOptions(**(edge or {}))
        self.training_loss, self.compute = TrainingLoss(**(loss or {})), Compute(**(compute or {}))
        self.learning_rate, self.parameterization = learning_rate, parameterization
        self.prompt, self.keep_text_encoder = prompt, keep_text_encoder
        self.latent_pool, self._released_text_tower = LatentPool(self.compute.draws_per_pair), StateDict()
        self.betas_of_process = make_betas(timesteps, linear_start, linear_end)
        kept = timesteps if time_replace is None else checks.whole_number("time_replace", time_replace, 1, timesteps)
        self._register_process(Sampling(kept).timesteps(self.betas_of_process))  # of one, the last
        options.check_process(self.original_timesteps, self.process.snr(torch.arange(kept)))
        self.model = DiffusionWrapper(instantiate_from_config(unet_config))
        self.first_stage_model = instantiate_from_config(first_stage_config)
        self.cond_stage_model: nn.Module | None = instantiate_from_config(cond_stage_config)
        self.structcond_stage_model = instantiate_from_config(structcond_stage_config)
        self.text = TextConditioner(self.cond_stage_model)
        self.first_stage = FirstStage(self.first_stage_model, scale_factor, recompute=options.decoder_checkpoint)
        structure_channels = cast(int, self.structcond_stage_model.in_channels)
        self.structure = Structure.of(edge_condition, structure_channels, self.first_stage)
        self.edge_loss = EdgeLoss(EdgeMapGenerator(), options)
        self.edge_term = EdgeTerm(weight, self.edge_loss, self.first_stage.decode, timesteps=timesteps)
        self.now_and_then = nn.ModuleDict({name: LastValue() for name in NOT_AT_EVERY_STEP})
        self._freeze(unfrozen_diff)
        self.model_ema = LitEma(self.model) if use_ema else None
        self._frozen = FrozenParts(ckpt_path) if save_trainable_only else None
        self._load(ckpt_path, ignore_keys, first_stage_config.get("params") or {})
        self.train()
        if self.use_edge_loss:
            self.compute.check_edge_loss(options)
            log.info("Edge loss enabled with weight: %s", weight)

    def _register_process(self, kept: list[int]) -> None:
        """Make the constants of the process that visits the steps `kept` buffers."""
        self._process: Process | None = None
        schedule = Schedule.from_betas(respace(self.betas_of_process, kept))
        self.register_buffer("original_timesteps", torch.tensor(kept), persistent=False)
        for name in Schedule.names():
            self.register_buffer(name, getattr(schedule, name))

    def _freeze(self, unfrozen_diff: bool) -> None:
        """Leave gradients to what stage 1 trains."""
        spades = [module for module in self.model.modules() if isinstance(module, SPADE)]
        self.edge_discriminator = self.edge_loss.discriminator if self.use_edge_loss else None
        trained = [*([self.model] if unfrozen_diff else spades), self.structcond_stage_model, self.edge_discriminator]
        self._trainable = [network for network in trained if network is not None]
        self.requires_grad_(False)
        for module in self._trainable:
            module.requires_grad_(True)

    def _load(
        self, ckpt_path: str | Sequence[str] | None, ignore_keys: Sequence[str], first_stage: Mapping[str, Any]
    ) -> None:
        if ckpt_path is None:
            log.warning("model.params.ckpt_path is null: the U-Net starts from random weights")
            return
        unused = tuple(f"cond_stage_model.{name}" for name in getattr(self.cond_stage_model, "without_effect", ()))
        may_be_new = {**MAY_BE_NEW, "text weights without effect": lambda key: key.startswith(unused)}

        # The schedule is the config's; a checkpoint trained with another number of steps may start this one.
        def select(state: StateDict) -> StateDict:
            if first_stage.get("ckpt_path") is not None:
                state = with_own_part(state, self.state_dict(), FIRST_STAGE)
            return self.structure.zero_start(state, ignore_keys) | vars(self.schedule)

        report = load_checkpoint(self, ckpt_path, ignore_keys, select, may_be_new)
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
        """The training process, on the model's device; its tables are made once."""
        if self._process is None or self._process.schedule.betas is not self.betas:
            self._process = Process(self.schedule, self.original_timesteps, self.parameterization)
        return self._process

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

    def split_over_processes(self, split: Callable[[nn.Module], None]) -> None:
        """Have the networks that are trained split, and what follows them; the autoencoder stays whole."""
        split(self.model.diffusion_model)
        split(self.structcond_stage_model)
        if self.model_ema is not None:
            self.model_ema.split_like(self.model)

    def on_fit_start(self) -> None:
        """Encode the one prompt of training, then let the text tower go; bring the networks into training's form."""
        self.contexts([self.prompt])
        self._prepare_networks()
        if self.compute.pool == "latents":
            self.latent_pool.open_for(self.trainer)
        if not self.keep_text_encoder:
            held = self.text.release(Path(self.trainer.default_root_dir) if self._trainer is not None else None)
            self._released_text_tower |= {f"cond_stage_model.{name}": value for name, value in held.items()}
            self.cond_stage_model = None

    def _prepare_networks(self) -> None:
        """What `compute` asks for, once."""
        if self._prepared:
            return
        self._prepared = True
        if self._frozen is not None and self.compute.frozen_dtype is not None:
            self._frozen.remember(self, self.state_dict())  # before anything is rounded
        self.compute.prepare(self.model.diffusion_model, self.structcond_stage_model, self.first_stage_model)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A saved checkpoint has the text tower's weights though the tower was let go; see also `FrozenParts`."""
        if self.compute.pool == "latents":
            checkpoint["latent_pool"] = self.latent_pool.state_dict()
        checkpoint["state_dict"].update(self._released_text_tower)
        if self._frozen is not None:
            self._frozen.leave_out(self, checkpoint["state_dict"])
        if self.edge_term.balance is not None:
            checkpoint["edge_balance"] = self.edge_term.balance.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Complete the weights, and go on with the edge loss's weight where gradients decide it."""
        if self._frozen is not None and FROZEN not in checkpoint["state_dict"]:
            self._frozen.check_whole(self, checkpoint["state_dict"], "the checkpoint")
        checkpoint["state_dict"] = put_back(checkpoint["state_dict"], self.state_dict(), "the checkpoint")
        if "latent_pool" in checkpoint:
            self.latent_pool.load_state_dict(checkpoint["latent_pool"])
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
        return self.compute.adamw([p for p in self.parameters() if p.requires_grad], self.learning_rate)

    def _step(self, pair: Pair, rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        latents = self.encode(pair, rng, drop_edges=self.training)
        gt_pm1 = pair.gt_pm1 if self.edge_loss.options.needs_pictures else None
        encoded = Encoded(latents.z_gt, latents.z_struct, gt_pm1, pair.paths)
        if self.training:
            encoded = self.latent_pool.draw(encoded)
        count = len(encoded)
        t = self.training_loss.draw_steps(len(self.original_timesteps), count, rng, training=self.training)
        t_original = self.original_timesteps[t]
        noise = torch.randn(encoded.z_gt.shape, generator=rng, device=self.device)
        structure = self.structcond_stage_model(encoded.z_struct, t_original)
        return self.p_losses(
            encoded.z_gt, self.context(count), structure, t, t_original, noise, gt_pm1=encoded.gt_pm1, rng=rng
        )

    @torch.no_grad()
    def encode(self, pair: Pair, rng: torch.Generator, *, drop_edges: bool = False) -> Latents:
        """Pixels to scaled latents, without gradient; `drop_edges` empties the edge maps of a share of the samples."""
        z_gt, z_lq = self.first_stage.encode_each((pair.gt_pm1, pair.lq_pm1), rng)
        return Latents(z_gt, z_lq, self.structure.of_pair(z_lq, pair, rng, drop=drop_edges))

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
        # From here on in float32, whatever precision the U-Net ran in: losses, x_0, the schedule.
        output = self.model.diffusion_model(n.x_t, n.t_original, cond, struct_cond).float()
        report = self.training_loss(process, n, output)
        if self.training and self.use_edge_loss:
            report = self.edge_term(report, process, n, output, gt_pm1=gt_pm1, step=self.global_step, rng=rng)
        split = "train" if self.training else "val"
        return report.total, {f"{split}/{name}": value for name, value in report.parts.items()}

    def ema_scope(self) -> AbstractContextManager[None]:
        """Within this context the U-Net has its averaged parameters, where there are any."""
        return self.model_ema.applied_to(self.model) if self.model_ema is not None else nullcontext()

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

        tiling: None means the whole canvas at once. x_T: the latent to start with, by default z_lq noised to the step
        where sampling starts. noise: shape -> the noise of each step.

        Raises:
            UserError: a step count out of range, or tiles that overlap too much.
        """
        noise = noise or self.noise()
        betas = truncated(self.betas_of_process, sampling.start_t)
        denoise = guided_denoiser(self.model.diffusion_model, self.structcond_stage_model, guidance)
        structure = guidance.canvas(self.structure(z_lq) if guidance.z_struct is None else guidance.z_struct)
        canvas: Denoiser = lambda x, t: denoise(x, t, structure)  # noqa: E731
        if tiling is not None:
            canvas = tiled(denoise, structure, tiling)
        x_T = initial_latent(z_lq, betas, noise) if x_T is None else x_T
        return SAMPLERS[sampling.sampler](
            canvas,
            x_T,
            betas,
            sampling,
            parameterization=self.parameterization,
            noise=noise,
            progress=progress,
            correct=guidance.correct,
        )
