"""Encoder and decoder of the KL autoencoder (Rombach et al. 2022, appendix G; layer names of the published weights)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention, silu
from torch.utils.checkpoint import checkpoint

from ldm.modules.diffusionmodules.util import Upsample, group_norm, regroup, zero_init

NORM_EPS = 1e-6
# Levels, from the finest, that hold nearly all of a decoder's activations.
LARGE_LEVELS = 2


def swish(normed: Tensor) -> Tensor:
    """SiLU of a norm's output, in place where no backward pass will want that output."""
    return silu(normed, inplace=not normed.requires_grad)


@dataclass(frozen=True)
class DDConfig:
    """A published `ddconfig` block: the shape of encoder and decoder.

    `resolution` only tells which levels `attn_resolutions` means; both networks take pictures of any size.
    `norm_groups` is ours, for small networks: see `regroup`.
    """

    ch: int
    ch_mult: Sequence[int]
    num_res_blocks: int
    z_channels: int
    resolution: int
    attn_resolutions: Sequence[int] = ()
    in_channels: int = 3
    out_ch: int = 3
    dropout: float = 0.0
    norm_groups: int = 32

    @property
    def downsampling(self) -> int:
        """Picture pixels per latent cell along each axis, f."""
        return 2 ** (len(self.ch_mult) - 1)

    def level(self, index: int, width_in: int, blocks: int) -> "Level":
        """The blocks of level `index` (0 is the finest), fed `width_in` channels."""
        widths = [width_in] + [self.ch * self.ch_mult[index]] * blocks
        return Level(widths, self.resolution // 2**index in self.attn_resolutions, self.dropout)


class ResnetBlock(nn.Module):
    """norm, swish, conv, twice, around a skip: (B, in, H, W) -> (B, out, H, W).

    `shortcut` names the 1x1 convolution of the skip where the channel count changes: checkpoints call it
    `nin_shortcut` in the autoencoder and `conv_out` in CFW's fusion layers.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        dropout: float = 0.0,
        shortcut: str = "nin_shortcut",
    ) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels, NORM_EPS)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels, NORM_EPS)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero_init(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self._shortcut = shortcut if in_channels != out_channels else None
        if self._shortcut:
            self.add_module(self._shortcut, nn.Conv2d(in_channels, out_channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(swish(self.norm1(x)))
        h = self.conv2(self.dropout(swish(self.norm2(h))))
        skip = self.get_submodule(self._shortcut)(x) if self._shortcut else x
        return skip + h


class AttnBlock(nn.Module):
    """Single-head self-attention over all positions, with a residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels, NORM_EPS)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        # Channels last in memory: only then does the fused kernel serve, which never holds all pairs of positions.
        q, k, v = (layer(h).flatten(2).transpose(1, 2).unsqueeze(1).contiguous() for layer in (self.q, self.k, self.v))
        h = scaled_dot_product_attention(q, k, v).squeeze(1).transpose(1, 2).reshape(x.shape)
        return x + self.proj_out(h)


class PaddedDownsample(nn.Module):
    """Halve height and width; padded by one on the right and the bottom only, as the weights expect."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(pad(x, (0, 1, 0, 1)))


class Middle(nn.Module):
    """Residual block, attention, residual block at the lowest resolution."""

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, dropout)
        self.attn_1 = AttnBlock(channels)
        self.block_2 = ResnetBlock(channels, channels, dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Level(nn.Module):
    """The blocks of one resolution, each followed by attention where the config asks for it, then a resampling."""

    def __init__(self, widths: Sequence[int], attention: bool, dropout: float) -> None:
        super().__init__()
        pairs = list(zip(widths[:-1], widths[1:], strict=True))
        self.block = nn.ModuleList(ResnetBlock(a, b, dropout) for a, b in pairs)
        self.attn = nn.ModuleList(AttnBlock(b) for _, b in pairs if attention)

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[i](x)
        return x


class Encoder(nn.Module):
    """Picture (B, in_channels, H, W) -> moments (B, 2 * z_channels, H / f, W / f)."""

    def __init__(self, config: DDConfig) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(config.in_channels, config.ch, 3, padding=1)
        self.down = nn.ModuleList()
        width = config.ch
        for i, mult in enumerate(config.ch_mult):
            level = config.level(i, width, config.num_res_blocks)
            width = config.ch * mult
            if i < len(config.ch_mult) - 1:
                level.downsample = PaddedDownsample(width)
            self.down.append(level)
        self.mid = Middle(width, config.dropout)
        self.norm_out = group_norm(width, NORM_EPS)
        self.conv_out = nn.Conv2d(width, 2 * config.z_channels, 3, padding=1)
        regroup(self, config.norm_groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_features(x)[0]

    def forward_features(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """As `forward`, and also each level's output before it is downsampled, from fine to coarse."""
        h, features = self.conv_in(x), []
        for level in self.down:
            h = level(h)
            features.append(h)
            if hasattr(level, "downsample"):
                h = level.get_submodule("downsample")(h)
        return self.conv_out(swish(self.norm_out(self.mid(h)))), features


class Decoder(nn.Module):
    """Latent (B, z_channels, h, w) -> picture (B, out_ch, f h, f w), nominally in [-1, 1] but not clamped."""

    def __init__(self, config: DDConfig) -> None:
        super().__init__()
        width = config.ch * config.ch_mult[-1]
        self.conv_in = nn.Conv2d(config.z_channels, width, 3, padding=1)
        self.mid = Middle(width, config.dropout)
        levels: list[Level] = []
        for i, mult in reversed(list(enumerate(config.ch_mult))):
            level = config.level(i, width, config.num_res_blocks + 1)
            width = config.ch * mult
            if i > 0:
                level.upsample = Upsample(width)
            levels.insert(0, level)
        self.up = nn.ModuleList(levels)
        self.norm_out = group_norm(width, NORM_EPS)
        self.conv_out = nn.Conv2d(width, config.out_ch, 3, padding=1)
        regroup(self, config.norm_groups)

    def forward(
        self, z: Tensor, after_level: Callable[[int, Tensor], Tensor] | None = None, *, recompute: bool = False
    ) -> Tensor:
        """Decode; `after_level(index, h)`, where given, replaces h between a level's blocks and its upsampling.

        `recompute` computes the finest levels, which hold most of the activations, again in the backward pass instead
        of keeping them.
        """

        def run(module: nn.Module, h: Tensor, large: bool = True) -> Tensor:
            if recompute and large and torch.is_grad_enabled():
                return checkpoint(module, h, use_reentrant=False)
            return module(h)

        h = self.mid(self.conv_in(z))
        for i in reversed(range(len(self.up))):
            h = run(self.up[i], h, i < LARGE_LEVELS)
            if after_level:
                h = after_level(i, h)
            if i > 0:
                h = run(self.up[i].get_submodule("upsample"), h, i <= LARGE_LEVELS)
        return self.conv_out(swish(self.norm_out(h)))
