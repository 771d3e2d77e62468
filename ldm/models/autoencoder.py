"""The first stage: pictures to latents and back. `AutoencoderKL` is also what trains one."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from basicsr.data.pair_pool import Pair
from basicsr.utils.errors import UserError
from basicsr.utils.rng import torch_rng
from ldm.models.diffusion.checkpoint import load_checkpoint, take_prefix
from ldm.modules.diffusionmodules.fusion import FusionDecoder
from ldm.modules.diffusionmodules.model import DDConfig, Decoder, Encoder
from ldm.modules.distributions.distributions import DiagonalGaussianDistribution
from ldm.util import check_arguments, instantiate_from_config


class AutoencoderKL(pl.LightningModule):
    """LDM's KL autoencoder: (B, 3, H, W) in [-1, 1] <-> unscaled latents (B, embed_dim, H/f, W/f).

    `ckpt_path` may be an autoencoder's own checkpoint or a whole stage-1 checkpoint, whose `first_stage_model.` part is
    taken; keys that begin with one of `ignore_keys` are left out. `lossconfig` matters for training alone. `image_key`
    and `monitor` are accepted from published YAMLs and change nothing here.
    """

    def __init__(
        self,
        ddconfig: Mapping[str, Any],
        lossconfig: Mapping[str, Any],
        embed_dim: int,
        ckpt_path: str | None = None,
        ignore_keys: Sequence[str] = (),
        image_key: str = "image",
        monitor: str | None = None,
        learning_rate: float = 1e-4,
    ) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        if wrong := check_arguments(DDConfig, ddconfig, name="ddconfig"):
            raise UserError(wrong[1])
        config = DDConfig(**ddconfig)
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = self.make_decoder(config)
        self.quant_conv = nn.Conv2d(2 * config.z_channels, 2 * embed_dim, 1)
        # A narrow posterior to start training from: at the variance of 1 that zero means, noise drowns the latent.
        nn.init.constant_(self.quant_conv.bias[embed_dim:], -5.0)  # type: ignore[index]
        self.post_quant_conv = nn.Conv2d(embed_dim, config.z_channels, 1)
        self.loss = instantiate_from_config(lossconfig)
        if ckpt_path is not None:
            load_checkpoint(self, ckpt_path, ignore_keys, select=lambda state: take_prefix(state, "first_stage_model."))

    def make_decoder(self, config: DDConfig) -> Decoder:
        """The decoder that this class pairs with its encoder."""
        return Decoder(config)

    def encode(self, image_pm1: Tensor) -> DiagonalGaussianDistribution:
        """The posterior over unscaled latents."""
        return DiagonalGaussianDistribution(self.quant_conv(self.encoder(image_pm1)))

    def decode(self, z: Tensor, recompute: bool = False) -> Tensor:
        """Unscaled latents to a picture, not clamped; `recompute` saves memory in the backward pass (`Decoder`)."""
        return self.decoder(self.post_quant_conv(z), recompute=recompute)

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
        loss, parts = self.loss(pair.gt_pm1, self.decode(posterior.sample(rng)), posterior)
        self.log_dict({f"{split}/{name}": value for name, value in parts.items()}, batch_size=len(pair))
        return loss


class AutoencoderKLResi(AutoencoderKL):
    """The stage-2 autoencoder with CFW: the decoder sees the encoder's features, weighted by `w` in [0, 1]."""

    decoder: FusionDecoder

    def training_step(self, pair: Pair, batch_idx: int) -> Tensor:
        """Refused: this project uses CFW but does not train it."""
        raise UserError("AutoencoderKLResi cannot be trained here; use a published CFW checkpoint")

    def make_decoder(self, config: DDConfig) -> FusionDecoder:
        return FusionDecoder(config)

    def encode(self, image_pm1: Tensor) -> tuple[DiagonalGaussianDistribution, list[Tensor]]:  # type: ignore[override]
        """The posterior, and the encoder's features of every level, fine to coarse."""
        moments, features = self.encoder.forward_features(image_pm1)
        return DiagonalGaussianDistribution(self.quant_conv(moments)), features

    def decode(  # type: ignore[override]
        self, z: Tensor, features: Sequence[Tensor], w: float | None = None
    ) -> Tensor:
        """Unscaled latents and encoder features to a picture, not clamped.

        Args:
            z: (B, embed_dim, H/f, W/f).
            features: of every level, fine to coarse, as `encode` returns them.
            w: the features' weight, 0 (none) to 1; the decoder's own `fusion_w` by default.
        """
        return self.decoder.forward_fused(self.post_quant_conv(z), features, w)
