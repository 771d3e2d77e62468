"""Controllable feature wrapping, CFW (StableSR, section 3.3): a decoder that looks at the encoder's features."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

from basicsr.utils.errors import UserError
from ldm.modules.diffusionmodules.model import DDConfig, Decoder, ResnetBlock

FUSED_LEVELS = (1, 2)


class ResidualDenseBlock(nn.Module):
    """Five convolutions, each of which sees all outputs before it; residual scaled by 0.2 (ESRGAN, section 3.1)."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        for i in range(1, 5):
            self.add_module(f"conv{i}", nn.Conv2d(channels + (i - 1) * growth, growth, 3, padding=1))
        self.conv5 = nn.Conv2d(channels + 4 * growth, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        seen = x
        for i in range(1, 5):
            seen = torch.cat([seen, leaky_relu(self.get_submodule(f"conv{i}")(seen), 0.2)], dim=1)
        return x + 0.2 * self.conv5(seen)


class RRDB(nn.Module):
    """Residual in residual dense block: three dense blocks in a residual scaled by 0.2 (ESRGAN, figure 4)."""

    def __init__(self, channels: int, growth: int = 32) -> None:
        super().__init__()
        self.rdb1 = ResidualDenseBlock(channels, growth)
        self.rdb2 = ResidualDenseBlock(channels, growth)
        self.rdb3 = ResidualDenseBlock(channels, growth)

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.2 * self.rdb3(self.rdb2(self.rdb1(x)))


class FusionLayer(nn.Module):
    """decoder feature + w * f(encoder feature, decoder feature), all (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.encode_enc_1 = ResnetBlock(2 * channels, channels, shortcut="conv_out")
        self.encode_enc_2 = nn.Sequential(RRDB(channels), RRDB(channels))
        self.encode_enc_3 = ResnetBlock(channels, channels, shortcut="conv_out")

    def forward(self, encoded: Tensor, decoded: Tensor, w: float) -> Tensor:
        mixed = self.encode_enc_1(torch.cat([encoded, decoded], dim=1))
        return decoded + w * self.encode_enc_3(self.encode_enc_2(mixed))


class FusionDecoder(Decoder):
    """The KL decoder with fusion layers at levels 1 and 2.

    `fusion_w` in [0, 1] weighs fidelity to the picture where a call names no weight of its own.
    """

    def __init__(self, config: DDConfig, fusion_w: float = 1.0) -> None:
        super().__init__(config)
        if len(config.ch_mult) <= max(FUSED_LEVELS):
            raise UserError(f"CFW wants an autoencoder of three levels or more; ddconfig.ch_mult is {config.ch_mult}")
        self.fusion_w = fusion_w
        for level in FUSED_LEVELS:
            self.add_module(f"fusion_layer_{level}", FusionLayer(config.ch * config.ch_mult[level]))

    def forward_fused(self, z: Tensor, features: Sequence[Tensor], w: float | None = None) -> Tensor:
        """Decode z with the encoder's `features` of all levels, fine to coarse (`Encoder.forward_features`).

        `w` replaces `fusion_w` for this call alone: the module is not changed, so that threads may share it.
        """
        weight = self.fusion_w if w is None else w

        def fuse(level: int, h: Tensor) -> Tensor:
            if level not in FUSED_LEVELS or weight == 0:
                return h
            return self.get_submodule(f"fusion_layer_{level}")(features[level], h, weight)

        return self(z, fuse)
