from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from reference.parity import CONFIG, SIDE, fill, noise, relative_error
from torch import Tensor, nn

from basicsr.utils.errors import UserError
from ldm.modules.attention import SpatialTransformer
from ldm.modules.diffusionmodules.openaimodel import EncoderUNetModelWT, UNetModelDualcondV2
from ldm.modules.diffusionmodules.util import timestep_embedding
from ldm.modules.spade import SPADE

LATENT = (2, 4, SIDE, SIDE)
T = torch.tensor([3, 871])
Arrays = Callable[[str], dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def unet() -> nn.Module:
    return fill(UNetModelDualcondV2(**CONFIG["unet"])).eval()


@pytest.fixture(scope="module")
def encoder() -> nn.Module:
    return fill(EncoderUNetModelWT(**CONFIG["structure"])).eval()


@pytest.fixture(scope="module")
def context() -> Tensor:
    return noise("ctx", (2, 7, CONFIG["unet"]["context_dim"]))


@torch.no_grad()
def test_networks_match_the_published_ones(
    unet: nn.Module, encoder: nn.Module, context: Tensor, arrays: Arrays
) -> None:
    reference = arrays("modules")
    structure = encoder(noise("struct_x", LATENT), T)
    assert set(structure) == {"16", "8", "4", "2"}
    for width, feature in structure.items():
        assert relative_error(feature, reference[f"struct_{width}"]) < 1e-4
    assert relative_error(unet(noise("x", LATENT), T, context, structure), reference["unet"]) < 1e-4


@torch.no_grad()
def test_samples_of_a_batch_do_not_mix(unet: nn.Module, encoder: nn.Module, context: Tensor) -> None:
    x = noise("x", LATENT)
    both = unet(x, T, context, encoder(x, T))
    alone = unet(x[1:], T[1:], context[1:], encoder(x[1:], T[1:]))
    assert relative_error(both[1:], alone) < 1e-5


@torch.no_grad()
def test_frames_need_not_be_square(unet: nn.Module, encoder: nn.Module, context: Tensor) -> None:
    x = noise("wide", (1, 4, 8, 24))
    assert unet(x, T[:1], context[:1], encoder(x, T[:1])).shape == x.shape


def test_checkpointing_changes_neither_output_nor_gradient(context: Tensor) -> None:
    x = noise("x", LATENT)[..., :8, :8]

    def run(use_checkpoint: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
        unet = fill(UNetModelDualcondV2(**{**CONFIG["unet"], "use_checkpoint": use_checkpoint}))
        encoder = fill(EncoderUNetModelWT(**{**CONFIG["structure"], "use_checkpoint": use_checkpoint}))
        output = unet(x, T, context, encoder(x, T))
        return output, torch.autograd.grad(output.square().sum(), [*unet.parameters(), *encoder.parameters()])

    (plain, plain_gradients), (recomputed, recomputed_gradients) = run(False), run(True)
    assert torch.equal(plain, recomputed)
    assert all(relative_error(a, b) < 1e-5 for a, b in zip(recomputed_gradients, plain_gradients, strict=True))


def test_fresh_residual_branches_start_at_zero(context: Tensor) -> None:
    unet = UNetModelDualcondV2(**CONFIG["unet"])
    structure = EncoderUNetModelWT(**CONFIG["structure"])(noise("x", LATENT), T)
    assert torch.count_nonzero(unet(noise("x", LATENT), T, context, structure)) == 0


def test_projections_are_the_same_as_linear_or_convolution() -> None:
    linear, convolution = (fill(SpatialTransformer(32, 2, 16, 1, 24, use_linear)) for use_linear in (True, False))
    x, context = noise("x", (2, 32, 4, 6)), noise("ctx", (2, 7, 24))
    assert relative_error(convolution(x, context), linear(x, context)) < 1e-5


def test_timestep_embedding_is_cosines_then_sines_in_float32() -> None:
    t = torch.tensor([0, 7, 999])
    frequencies = 10_000 ** (-torch.arange(4, dtype=torch.float64) / 4)
    want = torch.cat([torch.cos(t[:, None] * frequencies), torch.sin(t[:, None] * frequencies)], dim=1)
    assert relative_error(timestep_embedding(t, 8), want) < 1e-5
    assert timestep_embedding(t.half(), 8).dtype == torch.float32
    odd = timestep_embedding(t, 9)
    assert odd.shape == (3, 9)
    assert torch.count_nonzero(odd[:, -1]) == 0


@pytest.mark.parametrize(
    "option",
    [
        {"dims": 3},
        {"resblock_updown": True},
        {"use_scale_shift_norm": True},
        {"use_new_attention_order": True},
        {"conv_resample": False},
        {"use_spatial_transformer": False},
    ],
)
def test_published_options_without_implementation_are_refused_by_name(option: dict[str, Any]) -> None:
    ((name, value),) = option.items()
    with pytest.raises(UserError, match=f"{name} is {value}, which is not supported"):
        UNetModelDualcondV2(**{**CONFIG["unet"], **option})


def test_widths_that_cannot_be_built_are_refused() -> None:
    with pytest.raises(UserError, match="40 channels cannot be normalised"):
        UNetModelDualcondV2(**{**CONFIG["unet"], "model_channels": 40})
    with pytest.raises(UserError, match="num_head_channels: 48"):
        UNetModelDualcondV2(**{**CONFIG["unet"], "num_head_channels": 48})
    with pytest.raises(UserError, match="num_heads: -1"):
        UNetModelDualcondV2(**{**CONFIG["unet"], "num_head_channels": -1})


def test_spade_is_the_norm_scaled_and_shifted_by_the_structure() -> None:
    spade = fill(SPADE(64, 32))
    x, structure = noise("x", (1, 64, 4, 6)), {"6": noise("s", (1, 32, 4, 6)), "4": noise("other", (1, 32, 4, 4))}
    norm = nn.functional.group_norm(x, 32, spade.param_free_norm.weight, spade.param_free_norm.bias, eps=1e-5)
    hidden = torch.relu(spade.mlp_shared[0](structure["6"]))
    assert relative_error(spade(x, structure), norm + norm * spade.mlp_gamma(hidden) + spade.mlp_beta(hidden)) < 1e-6
    with pytest.raises(UserError, match="no structure feature of width 5, only 6, 4"):
        spade(noise("x", (1, 64, 5, 5)), structure)


def test_features_of_fewer_samples_serve_all_in_turn(unet: nn.Module, encoder: nn.Module, context: Tensor) -> None:
    x, other = noise("x", LATENT), context.flip(0)
    with torch.no_grad():
        structure = encoder(x, T)
        both = unet(x.repeat(2, 1, 1, 1), T.repeat(2), torch.cat([context, other]), structure)
        for part, text in zip(both.chunk(2), (context, other), strict=True):
            assert relative_error(part, unet(x, T, text, structure)) < 1e-5
