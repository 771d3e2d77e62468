"""Attention over a picture must run in the fused kernel, which does not hold every pair of positions."""

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ldm.modules.attention import CrossAttention
from ldm.modules.diffusionmodules.blocks import AttentionBlock
from ldm.modules.diffusionmodules.model import AttnBlock

PICTURE, TOKENS = (2, 64, 8, 8), (2, 64, 64)


@pytest.mark.parametrize(("block", "shapes"), [
    (AttnBlock(64), [PICTURE]),
    (AttentionBlock(64, heads=2), [PICTURE]),
    (CrossAttention(64, 64, heads=2, head_dim=32), [TOKENS, TOKENS]),
])  # fmt: skip
def test_the_fused_kernel_serves(block: nn.Module, shapes: list[tuple[int, ...]]) -> None:
    inputs = [torch.randn(shape) for shape in shapes]
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # raises where only the slow way would do
        fused = block(*inputs)
    with sdpa_kernel(SDPBackend.MATH):
        assert torch.allclose(block(*inputs), fused, atol=1e-5)
