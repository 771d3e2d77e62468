"""Stable Diffusion 2's text encoder: OpenCLIP's ViT-H-14 text tower (Radford et al. 2021; Cherti et al. 2023)."""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from basicsr.utils.errors import UserError
from ldm.modules.encoders.tokenizer import VOCAB_SIZE, ClipTokenizer
from ldm.published import takes_published_keys

ARCHS: dict[str, Mapping[str, int]] = {"ViT-H-14": {"width": 1024, "layers": 24, "heads": 16}}
LAYERS_LEFT_OUT = {"last": 0, "penultimate": 1}


class CausalSelfAttention(nn.Module):
    """Multi-head self-attention in which a token sees itself and those before it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        bound = width**-0.5  # as torch's Linear draws its weights
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width).uniform_(-bound, bound))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, L, width) -> (B, L, width)."""
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = qkv.reshape(*qkv.shape[:2], 3, self.heads, -1).permute(
            2, 0, 3, 1, 4
        )  # each (B, heads, L, width / heads)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out_proj(attended.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear layers around an exact (erf) GELU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, L, width) -> (B, L, width)."""
        return self.c_proj(F.gelu(self.c_fc(x)))


class ResidualBlock(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = CausalSelfAttention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = Mlp(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, L, width) -> (B, L, width)."""
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """A stack of blocks, the last few of which can be left out."""

    def __init__(self, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(ResidualBlock(width, heads) for _ in range(layers))

    def forward(self, x: torch.Tensor, leave_out: int = 0) -> torch.Tensor:
        """(B, L, width) -> (B, L, width), without the last `leave_out` blocks."""
        for block in self.resblocks[: len(self.resblocks) - leave_out]:
            x = block(x)
        return x


class TextTower(nn.Module):
    """Token ids to features; `text_projection` and `logit_scale` are unused here but part of OpenCLIP's checkpoints."""

    def __init__(self, width: int, layers: int, heads: int, length: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(VOCAB_SIZE, width, _weight=torch.empty(VOCAB_SIZE, width).normal_(0, 0.02))
        self.positional_embedding = nn.Parameter(torch.empty(length, width).normal_(0, 0.01))
        self.transformer = Transformer(width, layers, heads)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, width).normal_(0, width**-0.5))
        self.logit_scale = nn.Parameter(torch.full((), math.log(1 / 0.07)))

    def forward(self, tokens: torch.Tensor, leave_out: int = 0) -> torch.Tensor:
        """(B, length) ids -> (B, length, width): the blocks but the last `leave_out`, then the final normalisation."""
        x = self.token_embedding(tokens) + self.positional_embedding
        return self.ln_final(self.transformer(x, leave_out))


def _dimensions(arch: str | Mapping[str, int]) -> dict[str, int]:
    """Width, layers and heads of `arch`, checked."""
    known = f"known: {', '.join(ARCHS)}, or a mapping such as {{width: 64, layers: 2, heads: 4}}"
    if isinstance(arch, str) and arch in ARCHS:
        arch = ARCHS[arch]
    if not isinstance(arch, Mapping) or set(arch) != {"width", "layers", "heads"}:
        raise UserError(f"text encoder: arch is {arch!r}; {known}")
    whole = all(isinstance(value, int) and value > 0 for value in arch.values())
    if not whole or arch["width"] % arch["heads"]:
        raise UserError(f"text encoder: arch is {arch!r}; use whole numbers above 0, width a multiple of heads")
    return dict(arch)


class FrozenOpenCLIPEmbedder(nn.Module):
    """Prompts to the text features that the U-Net attends to.

    Weights are random until a checkpoint is loaded into the module; nothing is ever downloaded.

    arch: "ViT-H-14", or {width, layers, heads} for another size of the same tower.
    device: where to put the module; None leaves it where torch builds it.
    max_length: tokens per prompt; 77 in every published checkpoint.
    freeze: take no gradient and stay in eval mode, whatever `train()` is called with.
    layer: "penultimate" skips the last block, as Stable Diffusion 2 does, "last" does not; both end in `ln_final`.

    Raises UserError for another `arch`, `layer` or `max_length`.
    """

    @takes_published_keys
    def __init__(
        self,
        arch: str | Mapping[str, int] = "ViT-H-14",
        device: str | torch.device | None = None,
        max_length: int = 77,
        freeze: bool = True,
        layer: str = "penultimate",
    ) -> None:
        super().__init__()
        if layer not in LAYERS_LEFT_OUT:
            raise UserError(f"text encoder: layer is {layer!r}; choose one of {', '.join(LAYERS_LEFT_OUT)}")
        if max_length < 2:
            raise UserError(f"text encoder: max_length is {max_length}; at least 2 (start and end token), usually 77")
        self.max_length = max_length
        self.leave_out = LAYERS_LEFT_OUT[layer]
        self.frozen = freeze
        self.tokenizer = ClipTokenizer()
        self.model = TextTower(**_dimensions(arch), length=max_length)
        if device is not None:
            self.to(device)
        if freeze:
            self.requires_grad_(False)
            self.train()

    def train(self, mode: bool = True) -> "FrozenOpenCLIPEmbedder":
        """Switch to training mode; a frozen module stays in eval mode."""
        return super().train(mode and not self.frozen)

    def tokenize(self, prompts: Sequence[str]) -> torch.Tensor:
        """(B, max_length) int64 token ids on the CPU; see `ClipTokenizer`."""
        return self.tokenizer(prompts, self.max_length)

    def forward(self, prompts: str | Sequence[str]) -> torch.Tensor:
        """One prompt or B of them -> (B, max_length, width), on the module's device and in its dtype."""
        tokens = self.tokenize([prompts] if isinstance(prompts, str) else prompts)
        return self.model(tokens.to(self.model.token_embedding.weight.device), self.leave_out)
