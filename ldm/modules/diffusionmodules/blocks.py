"""Blocks of the U-Net and of the time-aware encoder (Dhariwal & Nichol 2021, with StableSR's SPADE)."""

from collections.abc import Mapping

from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from ldm.modules.attention import SpatialTransformer
from ldm.modules.diffusionmodules.util import group_norm, zero_init
from ldm.modules.spade import SPADE

NORM_EPS = 1e-5


class ResBlock(nn.Module):
    """Residual block steered by the time embedding: (B, in, h, w), (B, emb) -> (B, out, h, w)."""

    def __init__(self, channels: int, emb_channels: int, out_channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            group_norm(channels, NORM_EPS), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, out_channels))
        self.out_layers = nn.Sequential(
            group_norm(out_channels, NORM_EPS),
            nn.SiLU(),
            nn.Dropout(dropout),
            zero_init(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        self.skip_connection = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def residual(self, x: Tensor, emb: Tensor) -> Tensor:
        """The branch that is added to the skip."""
        return self.out_layers(self.in_layers(x) + self.emb_layers(emb)[:, :, None, None])

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.skip_connection(x) + self.residual(x, emb)


class ResBlockDual(ResBlock):
    """A residual block whose branch passes through SPADE before it is added (StableSR, section 3.1)."""

    def __init__(
        self,
        channels: int,
        emb_channels: int,
        out_channels: int,
        semb_channels: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(channels, emb_channels, out_channels, dropout)
        self.spade = SPADE(out_channels, semb_channels)

    def forward(self, x: Tensor, emb: Tensor, struct_cond: Mapping[str, Tensor]) -> Tensor:  # type: ignore[override]  # one more condition than its base
        return self.skip_connection(x) + self.spade(self.residual(x, emb), struct_cond)


class Downsample(nn.Module):
    """Halve height and width by a 3x3 convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class AttentionBlock(nn.Module):
    """Multi-head self-attention over positions with one `qkv` layer; heads are split before q, k and v."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = group_norm(channels, NORM_EPS)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zero_init(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        qkv = rearrange(self.qkv(self.norm(flat)), "b (h three d) n -> three b h n d", three=3, h=self.heads)
        q, k, v = qkv.contiguous()  # channels last in memory, for the fused kernel
        h = rearrange(scaled_dot_product_attention(q, k, v), "b h n d -> b (h d) n")
        return (flat + self.proj_out(h)).view_as(x)


class StageSequential(nn.Sequential):
    """Layers run one after the other, each given those of the conditions that its type takes."""

    def forward(  # type: ignore[override]  # nn.Sequential's takes one input
        self,
        x: Tensor,
        emb: Tensor,
        context: Tensor | None = None,
        struct_cond: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        for layer in self:
            if isinstance(layer, ResBlockDual):
                x = layer(x, emb, struct_cond)
            elif isinstance(layer, ResBlock):
                x = layer(x, emb)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, context)
            else:
                x = layer(x)
        return x
