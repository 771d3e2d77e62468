"""Guidance on text and on edges against its closed form, with a real U-Net and structure encoder."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from reference.models import SMALL, stage1
from reference.parity import fill, noise, relative_error
from torch import Tensor

from basicsr.utils.errors import FieldError
from ldm.models.diffusion.ddpm import LatentDiffusionSRTextWT
from ldm.models.diffusion.guidance import Guidance, guided
from ldm.models.diffusion.sampling import Sampling
from ldm.models.diffusion.tiling import Tiling
from ldm.modules.diffusionmodules.openaimodel import EncoderUNetModelWT

SHAPE = (1, 4, 8, 12)
CONTEXT, UNCOND = noise("ctx", (1, 7, 32)), noise("uncond", (1, 7, 32))
Z_LQ, X = noise("lq", SHAPE), noise("xT", SHAPE)
WITH, WITHOUT = (torch.cat([Z_LQ, noise(name, SHAPE)], dim=1) for name in ("edges", "no edges"))


@pytest.fixture(scope="module")
def model() -> LatentDiffusionSRTextWT:
    """One whose structure encoder has eight input channels."""
    built = stage1()
    built.structcond_stage_model = EncoderUNetModelWT(**{**SMALL["structure"], "in_channels": 8})
    fill(built)
    return built.eval().requires_grad_(False)


def one_step(model: LatentDiffusionSRTextWT, guidance: Guidance, z: Tensor = WITH, **options: Any) -> Tensor:
    """x_0 after one ancestral step, which is affine in the network's output."""
    return model.sample(Z_LQ, replace(guidance, z_struct=z), Sampling(1), x_T=X, **options)


@pytest.mark.parametrize("edge_scale", [0.0, 0.5, 1.0, 3.0])
def test_edges_alone_are_a_line_through_both_predictions(model: LatentDiffusionSRTextWT, edge_scale: float) -> None:
    towards, away = one_step(model, Guidance(CONTEXT)), one_step(model, Guidance(CONTEXT), WITHOUT)
    assert relative_error(towards, away) > 1e-3
    result = one_step(model, Guidance(CONTEXT, z_without_edges=WITHOUT, edge_scale=edge_scale))
    assert relative_error(result, away + edge_scale * (towards - away)) < 1e-5


def test_text_and_edges_add_what_each_changes(model: LatentDiffusionSRTextWT) -> None:
    both = one_step(model, Guidance(CONTEXT))
    no_text, no_edges = one_step(model, Guidance(UNCOND)), one_step(model, Guidance(CONTEXT), WITHOUT)
    guidance = Guidance(CONTEXT, UNCOND, 4.0, z_without_edges=WITHOUT, edge_scale=2.5)
    expected = both + 3.0 * (both - no_text) + 1.5 * (both - no_edges)
    assert relative_error(one_step(model, guidance), expected) < 1e-5
    # With one of the scales at 1 the other is as it is alone, to the bit.
    text = one_step(model, Guidance(CONTEXT, UNCOND, 4.0))
    assert torch.equal(one_step(model, replace(guidance, edge_scale=1.0)), text)
    edges = one_step(model, Guidance(CONTEXT, z_without_edges=WITHOUT, edge_scale=2.5))
    assert torch.equal(one_step(model, replace(guidance, scale=1.0)), edges)


def test_the_formula_on_numbers() -> None:
    output, no_text, no_edges = (torch.full((1, 4, 1, 1), value) for value in (5.0, 2.0, 1.0))
    assert guided(output).equal(output)
    result = guided(output, without_text=no_text, scale=7.0, without_edges=no_edges, edge_scale=3.0)
    assert result.equal(torch.full((1, 4, 1, 1), 2.0 + 7.0 * 3.0 + 2.0 * 4.0))


def test_tiles_cut_both_structures_alike(model: LatentDiffusionSRTextWT) -> None:
    guidance = Guidance(CONTEXT, UNCOND, 4.0, z_without_edges=WITHOUT, edge_scale=2.5)
    whole = one_step(model, guidance)
    assert relative_error(one_step(model, guidance, tiling=Tiling(12, 0)), whole) < 1e-6

    # Tiles without overlap are what each is alone.
    def upper(columns: slice) -> Tensor:
        def cut(z: Tensor) -> Tensor:
            return z[..., :6, columns]

        steered = replace(guidance, z_struct=cut(WITH), z_without_edges=cut(WITHOUT))
        return model.sample(cut(Z_LQ), steered, Sampling(1), x_T=cut(X), tiling=Tiling(6, 0, batch=2))

    assert relative_error(upper(slice(0, 12))[..., 6:], upper(slice(6, 12))) < 1e-5


def test_a_scale_without_what_to_go_away_from_is_refused() -> None:
    with pytest.raises(FieldError, match="edge_scale is 2.0: the model is told no edges"):
        Guidance(CONTEXT, edge_scale=2.0)
