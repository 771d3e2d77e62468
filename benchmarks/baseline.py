"""The baseline: the networks as the published code computes them, on our modules' weights.

`publish` gives every layer a forward pass of its own, written here from the papers and from what checkpoints hold
(Rombach et al. 2022; Dhariwal & Nichol 2021; Wang et al. 2024), so that nothing that makes ours fast can help it:

- attention by two products with all scores in memory and a softmax between (all three kinds of attention layers);
- everything in float32, in the memory layout that convolutions are given, and no activation that autograd asks for is
  computed again (published configs have `use_checkpoint: False`);
- a swish of two operations.

What else the published code does is in `baseline_use`.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, einsum, nn
from torch.nn.functional import interpolate, pad

from ldm.modules import attention, spade
from ldm.modules.diffusionmodules import blocks, model, openaimodel
from ldm.modules.diffusionmodules.util import Upsample


def swish(x: Tensor) -> Tensor:
    """The autoencoder's nonlinearity, as two operations."""
    return x * torch.sigmoid(x)


def timestep_features(t: Tensor, width: int) -> Tensor:
    """Cosines, then sines, of t (B,) at `width` / 2 frequencies from 1 down to 1 / 10,000: (B, width)."""
    half = width // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half, dtype=torch.float32) / half).to(t.device)
    angles = t[:, None].float() * frequencies[None]
    return torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)


def cross_attention(self: Any, x: Tensor, context: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v with the heads in the batch (Vaswani et al. 2017, equation 1)."""
    source = x if context is None else context
    q, k, v = self.to_q(x), self.to_k(source), self.to_v(source)
    B, N, width = q.shape

    def heads(part: Tensor) -> Tensor:
        split = part.reshape(B, part.shape[1], self.heads, width // self.heads)
        return split.permute(0, 2, 1, 3).reshape(B * self.heads, part.shape[1], width // self.heads)

    q, k, v = heads(q), heads(k), heads(v)
    scores = einsum("b i d, b j d -> b i j", q, k) * q.shape[-1] ** -0.5
    out = einsum("b i j, b j d -> b i d", scores.softmax(dim=-1), v)
    return self.to_out(out.reshape(B, self.heads, N, -1).permute(0, 2, 1, 3).reshape(B, N, -1))


def transformer_block(self: Any, x: Tensor, context: Tensor) -> Tensor:
    x = self.attn1(self.norm1(x)) + x
    x = self.attn2(self.norm2(x), context) + x
    value, gate = self.ff.net[0].proj(self.norm3(x)).chunk(2, dim=-1)
    gated = value * nn.functional.gelu(gate)
    return self.ff.net[2](self.ff.net[1](gated)) + x


def spatial_transformer(self: Any, x: Tensor, context: Tensor) -> Tensor:
    B, _, H, W = x.shape
    h = self.norm(x)
    if not self.use_linear:
        h = self.proj_in(h)
    h = h.permute(0, 2, 3, 1).reshape(B, H * W, -1).contiguous()
    if self.use_linear:
        h = self.proj_in(h)
    for block in self.transformer_blocks:
        h = block(h, context)
    if self.use_linear:
        h = self.proj_out(h)
    h = h.reshape(B, H, W, -1).permute(0, 3, 1, 2).contiguous()
    return x + (h if self.use_linear else self.proj_out(h))


def position_attention(self: Any, x: Tensor) -> Tensor:
    """The time-aware encoder's; q and k are scaled by d^-1/4 each."""
    B, C, *size = x.shape
    flat = x.reshape(B, C, -1)
    qkv = self.qkv(self.norm(flat)).reshape(B * self.heads, -1, flat.shape[-1])
    q, k, v = qkv.chunk(3, dim=1)
    scale = q.shape[1] ** -0.25
    weights = einsum("b c t, b c s -> b t s", q * scale, k * scale).softmax(dim=-1)
    h = einsum("b t s, b c s -> b c t", weights, v).reshape(B, C, -1)
    return (flat + self.proj_out(h)).reshape(B, C, *size)


def autoencoder_attention(self: Any, x: Tensor) -> Tensor:
    """All pairs of positions of the autoencoder's middle, as one matrix."""
    B, C, H, W = x.shape
    h = self.norm(x)
    q, k, v = (layer(h).reshape(B, C, H * W) for layer in (self.q, self.k, self.v))
    scores = torch.bmm(q.permute(0, 2, 1), k) * C**-0.5
    h = torch.bmm(v, scores.softmax(dim=2).permute(0, 2, 1)).reshape(B, C, H, W)
    return x + self.proj_out(h)


def resnet_block(self: Any, x: Tensor) -> Tensor:
    h = self.conv1(swish(self.norm1(x)))
    h = self.conv2(self.dropout(swish(self.norm2(h))))
    shortcut = [child for name, child in self.named_children() if name in ("nin_shortcut", "conv_out")]
    return (shortcut[0](x) if shortcut else x) + h


def encoder(self: Any, x: Tensor) -> Tensor:
    h = self.conv_in(x)
    for level in self.down:
        h = level_blocks(level, h)
        if hasattr(level, "downsample"):
            h = level.downsample.conv(pad(h, (0, 1, 0, 1), mode="constant", value=0))
    return self.conv_out(swish(self.norm_out(middle(self.mid, h))))


def decoder(self: Any, z: Tensor, *_: Any, **__: Any) -> Tensor:
    h = middle(self.mid, self.conv_in(z))
    for level in reversed(self.up):
        h = level_blocks(level, h)
        if hasattr(level, "upsample"):
            h = upsample(level.upsample, h)
    return self.conv_out(swish(self.norm_out(h)))


def middle(self: Any, h: Tensor) -> Tensor:
    return self.block_2(self.attn_1(self.block_1(h)))


def level_blocks(self: Any, h: Tensor) -> Tensor:
    for index, block in enumerate(self.block):
        h = block(h)
        if len(self.attn):
            h = self.attn[index](h)
    return h


def upsample(self: Any, x: Tensor) -> Tensor:
    return self.conv(interpolate(x, scale_factor=2, mode="nearest"))


def residual(self: Any, x: Tensor, emb: Tensor) -> Tensor:
    h = self.in_layers[2](self.in_layers[1](self.in_layers[0](x)))
    h = h + self.emb_layers[1](self.emb_layers[0](emb))[..., None, None]
    for layer in self.out_layers:
        h = layer(h)
    return h


def residual_block(self: Any, x: Tensor, emb: Tensor) -> Tensor:
    return self.skip_connection(x) + residual(self, x, emb)


def residual_block_dual(self: Any, x: Tensor, emb: Tensor, struct_cond: Mapping[str, Tensor]) -> Tensor:
    return self.skip_connection(x) + self.spade(residual(self, x, emb), struct_cond)


def spatially_adaptive_norm(self: Any, x: Tensor, struct_cond: Mapping[str, Tensor]) -> Tensor:
    """Park et al. 2019, equation 1."""
    normalized = self.param_free_norm(x)
    shared = self.mlp_shared[1](self.mlp_shared[0](struct_cond[str(x.shape[-1])]))
    gamma, beta = self.mlp_gamma(shared), self.mlp_beta(shared)
    return normalized * (1 + gamma) + beta


def stage(self: Any, x: Tensor, emb: Tensor, context: Any = None, struct_cond: Any = None) -> Tensor:
    for layer in self:
        if isinstance(layer, blocks.ResBlockDual):
            x = layer(x, emb, struct_cond)
        elif isinstance(layer, blocks.ResBlock):
            x = layer(x, emb)
        elif isinstance(layer, attention.SpatialTransformer):
            x = layer(x, context)
        elif isinstance(layer, Upsample):
            x = upsample(layer, x)
        else:
            x = layer(x)
    return x


def unet(self: Any, x: Tensor, timesteps: Tensor, context: Tensor, struct_cond: Mapping[str, Tensor]) -> Tensor:
    emb = self.time_embed(timestep_features(timesteps, self.model_channels))
    h, skips = x, []
    for block in self.input_blocks:
        h = block(h, emb, context, struct_cond)
        skips.append(h)
    h = self.middle_block(h, emb, context, struct_cond)
    for block in self.output_blocks:
        h = block(torch.cat([h, skips.pop()], dim=1), emb, context, struct_cond)
    return self.out[2](self.out[1](self.out[0](h)))


def structure_encoder(self: Any, x: Tensor, timesteps: Tensor) -> dict[str, Tensor]:
    emb = self.time_embed(timestep_features(timesteps, self.model_channels))
    h, kept = x, []
    for block in self.input_blocks:
        if isinstance(next(block.children()), blocks.Downsample):
            kept.append(h)
        h = block(h, emb)
    kept.append(self.middle_block(h, emb))
    return {str(each.shape[-1]): self.fea_tran[index](each, emb) for index, each in enumerate(kept)}


FORWARDS: dict[type[nn.Module], Callable[..., Any]] = {
    attention.CrossAttention: cross_attention,
    attention.BasicTransformerBlock: transformer_block,
    attention.SpatialTransformer: spatial_transformer,
    blocks.AttentionBlock: position_attention,
    blocks.ResBlock: residual_block,
    blocks.ResBlockDual: residual_block_dual,
    blocks.StageSequential: stage,
    spade.SPADE: spatially_adaptive_norm,
    model.AttnBlock: autoencoder_attention,
    model.ResnetBlock: resnet_block,
    model.Encoder: encoder,
    model.Decoder: decoder,
    openaimodel.UNetModelDualcondV2: unet,
    openaimodel.EncoderUNetModelWT: structure_encoder,
}


def publish(network: nn.Module) -> None:
    """Make all layers of a network compute as published, from now on, on weights in memory of its own."""
    for parameter in network.parameters():
        parameter.data = parameter.data.contiguous().clone()
    for module in network.modules():
        if type(module) in FORWARDS:
            module.forward = partial(FORWARDS[type(module)], module)
