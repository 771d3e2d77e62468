"""The first stage: pictures to latents and back. `AutoencoderKL` is also what trains one."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from basicsr.data.latent_pair import LatentPair
from basicsr.data.pair_pool import Pair
from basicsr.utils import checks
from basicsr.utils.edge_utils import EdgeMapGenerator
from basicsr.utils.errors import FieldError, UserError
from basicsr.utils.rng import torch_rng
from ldm.models.diffusion.checkpoint import StateDict, load_checkpoint, take_prefix
from ldm.modules.diffusionmodules.fusion import FusionDecoder
from ldm.modules.diffusionmodules.model import DDConfig, Decoder, Encoder
from ldm.modules.distributions.distributions import DiagonalGaussianDistribution
from ldm.modules.losses.edge_loss import EdgeLoss
from ldm.modules.losses.edge_options import EdgeOptions
from ldm.modules.losses.perceptual import LastLayer, LPIPSWithDiscriminator
from ldm.published import DDCONFIG, takes_published_keys, translated
from ldm.util import check_arguments, instantiate_from_config


def _first_stage_part(state: StateDict) -> StateDict:
    fusion = {key: value for key, value in state.items() if key.startswith("decoder.fusion_layer")}
    return take_prefix(state, "first_stage_model.") | fusion


class AutoencoderKL(pl.LightningModule):
    """LDM's KL autoencoder: (B, 3, H, W) in [-1, 1] <-> unscaled latents (B, embed_dim, H/f, W/f).

    `ckpt_path` may be an autoencoder's own checkpoint or a whole stage-1 checkpoint, whose `first_stage_model.` part is
    taken; keys that begin with one of `ignore_keys` are left out. `lossconfig` matters for training alone.
    """

    @takes_published_keys
    def __init__(
        self,
        ddconfig: Mapping[str, Any],
        lossconfig: Mapping[str, Any],
        embed_dim: int,
        ckpt_path: str | Sequence[str] | None = None,
        ignore_keys: Sequence[str] = (),
        *,
        learning_rate: float = 1e-4,
    ) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        if wrong := check_arguments(DDConfig, ddconfig, name="ddconfig"):
            raise UserError(wrong[1])
        config = DDConfig(**translated(DDCONFIG, ddconfig))
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = self.make_decoder(config)
        self.quant_conv = nn.Conv2d(2 * config.z_channels, 2 * embed_dim, 1)
        # A narrow posterior to start training from: at the variance of 1 that zero means, noise drowns the latent.
        nn.init.constant_(self.quant_conv.bias[embed_dim:], -5.0)  # type: ignore[index]  # there is a bias
        self.post_quant_conv = nn.Conv2d(embed_dim, config.z_channels, 1)
        self.loss = instantiate_from_config(lossconfig)
        if ckpt_path is not None:
            load_checkpoint(self, ckpt_path, ignore_keys, _first_stage_part, self.may_be_new)

    @property
    def may_be_new(self) -> Mapping[str, Callable[[str], bool]]:
        """Parts that a checkpoint to start from may lack as a whole; see `load_checkpoint`."""
        return {}

    def make_decoder(self, config: DDConfig) -> Decoder:
        """The decoder that this class pairs with its encoder."""
        return Decoder(config)

    def encode(self, image_pm1: Tensor) -> DiagonalGaussianDistribution:
        """The posterior over unscaled latents."""
        return DiagonalGaussianDistribution(self.quant_conv(self.encoder(image_pm1)))

    def decode(self, z: Tensor, *, recompute: bool = False) -> Tensor:
        """Unscaled latents to a picture, not clamped; `recompute` saves memory in the backward pass (`Decoder`)."""
        decoded_pm1: Tensor = self.decoder(self.post_quant_conv(z), recompute=recompute)
        return decoded_pm1

    def training_step(self, pair: Pair, batch_idx: int) -> Tensor:
        """One step of reconstruction on the pairs' true pictures."""
        return self._step(pair, batch_idx, "train")

    def validation_step(self, pair: Pair, batch_idx: int) -> None:
        """Log reconstruction losses and PSNR of the true pictures."""
        self._step(pair, batch_idx, "val")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW, its learning rate falling to 0 along half a cosine over the run.

        Raises UserError for a run without an end, along which nothing can fall.
        """
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.learning_rate, betas=(0.9, 0.99))
        steps = self.trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise UserError("an autoencoder's learning rate falls to 0 over the run: set lightning.trainer.max_steps")
        steps = int(steps)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _step(self, pair: Pair, batch_idx: int, split: str) -> Tensor:
        rng = torch_rng(self.device, split, torch.initial_seed(), self.global_rank, self.current_epoch, batch_idx)
        posterior = self.encode(pair.gt_pm1)
        loss: Tensor
        loss, parts = self.loss(pair.gt_pm1, self.decode(posterior.sample(rng)), posterior)
        self.log_dict({f"{split}/{name}": value for name, value in parts.items()}, batch_size=len(pair))
        return loss


class AutoencoderKLResi(AutoencoderKL):
    """The stage-2 autoencoder with CFW: the decoder sees the encoder's features, weighted by `w` in [0, 1].

    Trained by `LPIPSWithDiscriminator` on what stage 1 made of degraded pictures (`LatentPair`): features of LQ and the
    sampled latent -> GT. One batch is one step of two Adams, the autoencoder's and then the discriminator's, both on
    the same decoded picture.

    The arguments are AutoencoderKL's and other published keys (see also `ldm.published`); ours are the last four.

    Args:
        fusion_w: w of training, and of decoding where nothing else is said.
        freeze_dec: train the fusion layers alone; False trains the whole autoencoder.
        test_gt: train on the true picture's latent in place of the sampled one.
        scale_factor: stage 1's: what the latents in the data were multiplied by.
        edge_loss_weight, edge_loss_type: weight and error of stage 1's edge loss (`EdgeLoss`) of the decoded picture,
            whose other options are the defaults; 0 leaves it out.

    Raises:
        UserError: as AutoencoderKL; a value out of range, or a loss that cannot train this.
    """

    decoder: FusionDecoder

    @takes_published_keys
    def __init__(
        self,
        ddconfig: Mapping[str, Any],
        lossconfig: Mapping[str, Any],
        embed_dim: int,
        ckpt_path: str | Sequence[str] | None = None,
        ignore_keys: Sequence[str] = (),
        *,
        fusion_w: float = 1.0,
        freeze_dec: bool = True,
        test_gt: bool = False,
        scale_factor: float = 0.18215,
        edge_loss_weight: float = 0.0,
        edge_loss_type: str = "weighted_mse",
        learning_rate: float = 5e-5,
    ) -> None:
        super().__init__(
            ddconfig=ddconfig,
            lossconfig=lossconfig,
            embed_dim=embed_dim,
            ckpt_path=ckpt_path,
            ignore_keys=ignore_keys,
            learning_rate=learning_rate,
        )
        self.decoder.fusion_w = checks.probability("fusion_w", fusion_w)
        self.test_gt = test_gt
        self.freeze_dec = freeze_dec
        self.scale_factor = checks.number("scale_factor", scale_factor, 1e-6)
        self.edge_loss_weight = checks.number("edge_loss_weight", edge_loss_weight, 0)
        self.edge_loss = EdgeLoss(EdgeMapGenerator(), EdgeOptions(loss_type=edge_loss_type))
        if self.edge_loss.discriminator is not None:
            raise FieldError("edge_loss_type", "is 'adversarial': this stage has its discriminator; choose magnitude")
        self.automatic_optimization = False
        self._accumulate = 1
        self._clip: float | None = None
        if freeze_dec:
            for name, parameter in self.named_parameters():
                if "fusion_layer" not in name and not name.startswith("loss."):
                    parameter.requires_grad_(False)

    @property
    def may_be_new(self) -> Mapping[str, Callable[[str], bool]]:
        """To train from Stable Diffusion's autoencoder there need be no fusion layers and no discriminator yet."""
        if isinstance(self.loss, nn.Identity):
            return {}
        return {"CFW": lambda key: "fusion_layer" in key, "loss": lambda key: key.startswith("loss.")}

    def make_decoder(self, config: DDConfig) -> FusionDecoder:
        return FusionDecoder(config)

    def encode(self, image_pm1: Tensor) -> tuple[DiagonalGaussianDistribution, list[Tensor]]:  # type: ignore[override]  # gives the features besides
        """The posterior, and the encoder's features of every level, fine to coarse."""
        moments, features = self.encoder.forward_features(image_pm1)
        return DiagonalGaussianDistribution(self.quant_conv(moments)), features

    def decode(  # type: ignore[override]  # takes the features besides
        self, z: Tensor, features: Sequence[Tensor], w: float | None = None
    ) -> Tensor:
        """Unscaled latents and encoder features to a picture, not clamped.

        Args:
            z: (B, embed_dim, H/f, W/f).
            features: of every level, fine to coarse, as `encode` returns them.
            w: the features' weight, 0 (none) to 1; the decoder's own `fusion_w` by default.
        """
        return self.decoder.forward_fused(self.post_quant_conv(z), features, w)

    # Training

    def configure_callbacks(self) -> list[pl.Callback]:
        """None. This is the last hook before Lightning refuses accumulation and clipping in manual optimisation.

        Both are done here instead: see `training_step` and `on_before_optimizer_step`.
        """
        self._accumulate, self._clip = self.trainer.accumulate_grad_batches, self.trainer.gradient_clip_val
        self.trainer.accumulate_grad_batches, self.trainer.gradient_clip_val = 1, None
        return []

    def setup(self, stage: str) -> None:
        """Put the trainer's settings back, by which others count steps, and prepare it for two backward passes.

        Raises UserError where there is no loss to train with.
        """
        self.trainer.accumulate_grad_batches, self.trainer.gradient_clip_val = self._accumulate, self._clip
        if not isinstance(self.loss, LPIPSWithDiscriminator):
            raise UserError(
                "AutoencoderKLResi trains with lossconfig.target ldm.modules.losses.LPIPSWithDiscriminator, "
                f"not with {type(self.loss).__name__}"
            )
        if isinstance(self.trainer.strategy, DDPStrategy):
            # Each of the two passes reaches a part of the parameters alone.
            self.trainer.strategy._ddp_kwargs["find_unused_parameters"] = True

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Adam for the autoencoder and for the discriminator."""
        networks = ([p for name, p in self.named_parameters() if p.requires_grad and not name.startswith("loss.")],)
        return [
            torch.optim.Adam(parameters, lr=self.learning_rate, betas=(0.5, 0.9))
            for parameters in (*networks, list(self.loss.discriminator.parameters()))
        ]

    def training_step(self, pair: Pair, batch_idx: int) -> None:  # type: ignore[override]  # manual optimisation returns nothing
        """Two backward passes; at the last batch of those that accumulate, a step of both optimisers."""
        autoencoder, discriminator = self.optimizers()  # type: ignore[attr-defined]  # a list of two
        pair = _with_latents(pair)
        # The published loss ends at the discriminator: what it is to learn comes from its own.
        self.loss.discriminator.requires_grad_(False)
        decoded_pm1, posterior, last = self.reconstruct(pair)
        loss, parts = self.loss.autoencoder_loss(pair.gt_pm1, decoded_pm1, posterior, self.global_step, last)
        if self.edge_loss_weight > 0:
            edge = self.edge_loss(decoded_pm1, pair.gt_pm1)
            loss = loss + self.edge_loss_weight * edge.loss
            parts |= {"total_loss": loss.detach(), "loss_edge": edge.loss.detach()}
        self.manual_backward(loss / self._accumulate)
        self.loss.discriminator.requires_grad_(True)
        disc_loss, disc_parts = self.loss.discriminator_loss(pair.gt_pm1, decoded_pm1, self.global_step)
        self.manual_backward(disc_loss / self._accumulate)
        # `loss` once more under the name that the progress bar and stage 1's curves have.
        self._log({**parts, **disc_parts, "loss": parts["total_loss"]}, "train", len(pair))
        if (batch_idx + 1) % self._accumulate == 0 or self.trainer.is_last_batch:
            autoencoder.step()
            # Past Lightning's wrapper, which would count a second step of training. In 16-mixed precision each of them
            # adapts the loss's scale: after an overflow in the first the other's gradient counts twice, which its Adam
            # hardly notices.
            self.trainer.strategy.optimizer_step(discriminator.optimizer, lambda: None, self)
            autoencoder.zero_grad()
            discriminator.zero_grad()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip each optimiser's gradients as the trainer was told."""
        if self._clip:
            self.clip_gradients(optimizer, self._clip, self.trainer.gradient_clip_algorithm)

    def validation_step(self, pair: Pair, batch_idx: int) -> None:
        """Log both losses."""
        pair = _with_latents(pair)
        decoded_pm1, posterior, _ = self.reconstruct(pair)
        _, parts = self.loss.autoencoder_loss(pair.gt_pm1, decoded_pm1, posterior, self.global_step)
        _, disc_parts = self.loss.discriminator_loss(pair.gt_pm1, decoded_pm1, self.global_step)
        if self.edge_loss_weight > 0:
            parts["loss_edge"] = self.edge_loss(decoded_pm1, pair.gt_pm1).loss
        self._log({**parts, **disc_parts}, "val", len(pair))

    def reconstruct(self, pair: LatentPair) -> tuple[Tensor, DiagonalGaussianDistribution, LastLayer]:
        """The decoded picture (B, 3, H, W), the posterior of LQ, and what the decoder's last layer did."""
        cells = tuple(side // self.config.downsampling for side in pair.lq_pm1.shape[-2:])
        if tuple(pair.z.shape[-2:]) != cells:
            raise UserError(
                f"{pair.paths[0]}: its latent has {tuple(pair.z.shape[-2:])} cells, and this ddconfig wants {cells}: "
                "take the ddconfig of the stage 1 that made it"
            )
        keep = torch.is_grad_enabled() and not self.freeze_dec
        with torch.set_grad_enabled(keep):
            posterior, features = self.encode(pair.lq_pm1)
            z = self.encode(pair.gt_pm1)[0].mode() if self.test_gt else pair.z / self.scale_factor
        inputs: list[Tensor] = []
        layer = self.decoder.conv_out
        hook = layer.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0].detach()))
        try:
            decoded_pm1 = self.decode(z, features)
        finally:
            hook.remove()
        return decoded_pm1, posterior, LastLayer(layer, inputs[0])

    @torch.no_grad()
    def log_images(self, pair: Pair, n: int = 4) -> dict[str, Tensor]:
        """The first n of a batch by label, (n, 3, H, W) in [-1, 1]; `samples` is without CFW."""
        pair = _with_latents(pair)[:n]
        decoded_pm1, _, _ = self.reconstruct(pair)
        images = {"inputs": pair.lq_pm1, "gts": pair.gt_pm1, "samples": pair.sample_pm1, "reconstructions": decoded_pm1}
        return {name: image.float().clamp(-1, 1) for name, image in images.items()}

    def _log(self, parts: Mapping[str, Tensor], split: str, count: int) -> None:
        self.log_dict(
            {f"{split}/{name}": value for name, value in parts.items()}, batch_size=count, sync_dist=split == "val"
        )


def _with_latents(pair: Pair) -> LatentPair:
    if not isinstance(pair, LatentPair):
        raise UserError(
            "CFW trains on sampled latents, and the data have none: make them with scripts/generate_cfw_data.py, "
            "and name basicsr.data.single_image_dataset.SingleImageNPDataset as the data set"
        )
    return pair
