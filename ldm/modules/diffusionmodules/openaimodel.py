"""The two networks of StableSR: assembly only, from the parts in `blocks.py` and `attention.py`.

Arguments carry the names of published YAMLs; what else those set is in `ldm.published`. `norm_groups` is ours, for
small networks: see `regroup`.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from basicsr.utils.errors import UserError
from ldm.modules.attention import SpatialTransformer
from ldm.modules.diffusionmodules.blocks import (
    NORM_EPS,
    AttentionBlock,
    Downsample,
    ResBlock,
    ResBlockDual,
    StageSequential,
)
from ldm.modules.diffusionmodules.util import Upsample, group_norm, regroup, timestep_embedding, zero_init
from ldm.published import takes_published_keys


def time_embedding(model_channels: int) -> nn.Sequential:
    """Two layers from sinusoids of width C to the 4 C wide embedding that residual blocks take."""
    return nn.Sequential(
        nn.Linear(model_channels, 4 * model_channels), nn.SiLU(), nn.Linear(4 * model_channels, 4 * model_channels)
    )


def head_count(channels: int, num_heads: int, num_head_channels: int) -> int:
    """Heads of an attention layer: a fixed count, or one per `num_head_channels` channels where that is not -1."""
    heads = num_heads if num_head_channels == -1 else channels // num_head_channels
    if heads < 1 or channels % heads:
        raise UserError(
            f"{channels} channels cannot be split into heads by num_heads: {num_heads}, "
            f"num_head_channels: {num_head_channels}"
        )
    return heads


def run_stage(recompute: bool, stage: nn.Module, *args: object) -> Tensor:
    """`stage(*args)`; with `recompute` its activations are not kept for the backward pass but computed again."""
    if recompute and torch.is_grad_enabled():
        return checkpoint(stage, *args, use_reentrant=False)
    return stage(*args)


class UNetModelDualcondV2(nn.Module):
    """Stable Diffusion's U-Net, each residual block of which is modulated by structure features through SPADE.

    forward(x (B, in, h, w), timesteps (B,), context (B, L, context_dim), struct_cond {str(width): (B, semb, ., width)})
    -> (B, out, h, w). Features of fewer samples serve all of x in turn: see `SPADE`. `use_checkpoint` recomputes every
    stage in the backward pass. Raises UserError where h or w is not a multiple of 2^(levels - 1).
    """

    @takes_published_keys
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        model_channels: int,
        attention_resolutions: Sequence[int],
        num_res_blocks: int,
        context_dim: int,
        channel_mult: Sequence[int] = (1, 2, 4, 4),
        num_heads: int = -1,
        num_head_channels: int = -1,
        transformer_depth: int = 1,
        use_linear_in_transformer: bool = False,
        semb_channels: int = 256,
        dropout: float = 0.0,
        use_checkpoint: bool = False,
        norm_groups: int = 32,
    ) -> None:
        super().__init__()
        self.model_channels = model_channels
        self.use_checkpoint = use_checkpoint
        self.downsampling = 2 ** (len(channel_mult) - 1)
        self.time_embed = time_embedding(model_channels)
        res_block = partial(ResBlockDual, emb_channels=4 * model_channels, semb_channels=semb_channels, dropout=dropout)

        def transformer(width: int) -> SpatialTransformer:
            heads = head_count(width, num_heads, num_head_channels)
            shape = {"heads": heads, "head_dim": width // heads, "depth": transformer_depth, "context_dim": context_dim}
            return SpatialTransformer(width, **shape, use_linear=use_linear_in_transformer)

        def stage(width: int, level: int) -> StageSequential:
            out = channel_mult[level] * model_channels
            attend = 2**level in attention_resolutions
            return StageSequential(res_block(width, out_channels=out), *([transformer(out)] if attend else []))

        width, skips, last = model_channels, [model_channels], len(channel_mult) - 1
        self.input_blocks = nn.ModuleList([StageSequential(nn.Conv2d(in_channels, width, 3, padding=1))])
        for level, mult in enumerate(channel_mult):
            for _ in range(num_res_blocks):
                self.input_blocks.append(stage(width, level))
                width = mult * model_channels
                skips.append(width)
            if level < last:
                self.input_blocks.append(StageSequential(Downsample(width)))
                skips.append(width)
        middle = [res_block(width, out_channels=width), transformer(width), res_block(width, out_channels=width)]
        self.middle_block = StageSequential(*middle)
        self.output_blocks = nn.ModuleList()
        for level in range(last, -1, -1):
            for i in range(num_res_blocks + 1):
                block = stage(width + skips.pop(), level)
                width = channel_mult[level] * model_channels
                if level > 0 and i == num_res_blocks:
                    block.append(Upsample(width))
                self.output_blocks.append(block)
        self.out = nn.Sequential(
            group_norm(width, NORM_EPS), nn.SiLU(), zero_init(nn.Conv2d(width, out_channels, 3, padding=1))
        )
        regroup(self, norm_groups)

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor, struct_cond: Mapping[str, Tensor]) -> Tensor:
        height, width = x.shape[-2:]
        if height % self.downsampling or width % self.downsampling:
            raise UserError(
                f"the U-Net takes latents whose sides are multiples of {self.downsampling}, these have {height} x "
                f"{width} cells: choose gt_size and crop_size to be multiples of {self.downsampling} cells' pixels "
                "(of 64 for published models)"
            )
        run = partial(run_stage, self.use_checkpoint)
        emb = self.time_embed(timestep_embedding(timesteps, self.model_channels).to(x.dtype))
        h, skips = x, []
        for block in self.input_blocks:
            h = run(block, h, emb, context, struct_cond)
            skips.append(h)
        h = run(self.middle_block, h, emb, context, struct_cond)
        for block in self.output_blocks:
            h = run(block, torch.cat([h, skips.pop()], dim=1), emb, context, struct_cond)
        return self.out(h)


class EncoderUNetModelWT(nn.Module):
    """StableSR's time-aware encoder: the LQ latent and the timestep to one structure feature per resolution.

    forward(x (B, in, h, w), timesteps (B,)) -> {str(width): (B, out_channels, ., width)}: the feature before each
    downsampling and the middle block's output, each through its own residual block `fea_tran[i]`.
    """

    @takes_published_keys
    def __init__(
        self,
        in_channels: int,
        model_channels: int,
        out_channels: int,
        num_res_blocks: int,
        attention_resolutions: Sequence[int],
        dropout: float = 0.0,
        channel_mult: Sequence[int] = (1, 1, 2, 2),
        num_heads: int = 4,
        num_head_channels: int = -1,
        use_checkpoint: bool = False,
        norm_groups: int = 32,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.model_channels = model_channels
        self.use_checkpoint = use_checkpoint
        self.time_embed = time_embedding(model_channels)
        emb = 4 * model_channels

        res_block = partial(ResBlock, emb_channels=emb, dropout=dropout)

        def attention(width: int) -> AttentionBlock:
            return AttentionBlock(width, head_count(width, num_heads, num_head_channels))

        width, feature_widths, downsampling = model_channels, [], 1
        self.input_blocks = nn.ModuleList([StageSequential(nn.Conv2d(in_channels, width, 3, padding=1))])
        for level, mult in enumerate(channel_mult):
            for _ in range(num_res_blocks):
                block = StageSequential(res_block(width, out_channels=mult * model_channels))
                width = mult * model_channels
                if downsampling in attention_resolutions:
                    block.append(attention(width))
                self.input_blocks.append(block)
            if level < len(channel_mult) - 1:
                self.input_blocks.append(StageSequential(Downsample(width)))
                feature_widths.append(width)
                downsampling *= 2
        feature_widths.append(width)

        self.middle_block = StageSequential(
            res_block(width, out_channels=width), attention(width), res_block(width, out_channels=width)
        )
        self.fea_tran = nn.ModuleList(res_block(w, out_channels=out_channels) for w in feature_widths)
        regroup(self, norm_groups)

    def forward(self, x: Tensor, timesteps: Tensor) -> dict[str, Tensor]:
        run = partial(run_stage, self.use_checkpoint)
        emb = self.time_embed(timestep_embedding(timesteps, self.model_channels).to(x.dtype))
        h, features = x, []
        for block in self.input_blocks:
            if isinstance(next(block.children()), Downsample):
                features.append(h)
            h = run(block, h, emb)
        features.append(run(self.middle_block, h, emb))
        return {str(f.shape[-1]): tran(f, emb) for f, tran in zip(features, self.fea_tran, strict=True)}
