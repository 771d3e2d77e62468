"""`norm_groups`: what a narrow network gains by having fewer groups than published ones."""

import pytest
import torch
from reference.models import SMALL
from torch import nn

from basicsr.utils.errors import UserError
from ldm.modules.diffusionmodules.model import DDConfig, Decoder
from ldm.modules.diffusionmodules.openaimodel import EncoderUNetModelWT, UNetModelDualcondV2
from ldm.modules.diffusionmodules.util import regroup
from ldm.published import DDCONFIG, translated


def groups(network: nn.Module) -> set[int]:
    return {module.num_groups for module in network.modules() if isinstance(module, nn.GroupNorm)}


def test_every_norm_of_each_network_has_the_groups_asked_for() -> None:
    unet, structure, first_stage = SMALL["unet"], SMALL["structure"], SMALL["first_stage"]
    assert groups(UNetModelDualcondV2(**unet)) == {32}
    assert groups(UNetModelDualcondV2(**unet, norm_groups=4)) == {4}
    assert groups(EncoderUNetModelWT(**structure, norm_groups=8)) == {8}
    assert groups(Decoder(DDConfig(**translated(DDCONFIG, first_stage), norm_groups=1))) == {1}


def test_a_channel_that_is_a_group_of_its_own_loses_its_mean() -> None:
    norm, x = nn.Sequential(nn.GroupNorm(32, 32)), torch.randn(1, 32, 8, 8)
    brighter = x + torch.arange(32.0)[:, None, None]
    assert torch.allclose(norm(x), norm(brighter), atol=1e-3)
    regroup(norm, 1)
    assert not torch.allclose(norm(x), norm(brighter), atol=0.1)


@pytest.mark.parametrize("count", [0, -1, 5])
def test_groups_that_do_not_divide_a_width_are_refused(count: int) -> None:
    with pytest.raises(UserError, match=f"norm_groups: {count}"):
        regroup(nn.GroupNorm(32, 64), count)
