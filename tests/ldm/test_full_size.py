from pathlib import Path

import pytest
import torch
from reference.parity import MANIFEST
from torch import nn

from ldm.config import load_config
from ldm.models.autoencoder import AutoencoderKLResi
from ldm.models.diffusion.ddpm import LatentDiffusionSRTextWT
from ldm.modules.ema import LitEma
from ldm.util import instantiate_from_config

CONFIGS = Path(__file__).parents[2] / "configs" / "stableSRNew"
EDGE_CONFIG = CONFIGS / "v2-finetune_text_T_512_edge_800.yaml"


def build(overrides: dict) -> LatentDiffusionSRTextWT:
    values = load_config([EDGE_CONFIG]).values["model"]
    with torch.device("meta"):
        return instantiate_from_config({**values, "params": {**values["params"], "ckpt_path": None, **overrides}})


@pytest.fixture(scope="module")
def model() -> LatentDiffusionSRTextWT:
    return build({})


def shapes(module: nn.Module) -> dict[str, list[int]]:
    return {key: list(value.shape) for key, value in module.state_dict().items()}


def test_the_edge_config_has_the_published_keys_and_shapes_and_no_others(model: LatentDiffusionSRTextWT) -> None:
    assert model.edge_loss_weight == 0.1
    assert model.first_stage.recompute
    assert shapes(model) == MANIFEST["stage1"]


def test_the_trainable_part_is_spade_and_structure(model: LatentDiffusionSRTextWT) -> None:
    trained = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    assert sum(trained.values()) / 1e6 == pytest.approx(105.5, abs=0.05)
    assert all(".spade." in name or name.startswith("structcond_stage_model.") for name in trained)
    unet = sum(p.numel() for p in model.model.parameters())
    spade = sum(count for name, count in trained.items() if ".spade." in name)
    assert (unet / 1e6, spade / 1e6) == (pytest.approx(918.9, abs=0.05), pytest.approx(53.0, abs=0.05))


def test_unfrozen_diff_trains_the_whole_unet() -> None:
    model = build({"unfrozen_diff": True})
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {
        name for name, _ in model.named_parameters() if name.startswith(("model.", "structcond_stage_model."))
    }


def test_averages_of_different_parameters_have_different_names(model: LatentDiffusionSRTextWT) -> None:
    unet = build({"unfrozen_diff": True}).model
    with torch.device("meta"):
        names = set(LitEma(unet).state_dict()) - {"decay", "num_updates"}
    assert len(names) == len(list(unet.parameters()))
    assert "diffusion_modelinput_blocks10spademlp_gammaweight" in names


def test_stage_2_has_the_published_keys_and_shapes() -> None:
    values = load_config([EDGE_CONFIG]).values["model"]["params"]["first_stage_config"]["params"]
    with torch.device("meta"):
        assert shapes(AutoencoderKLResi(**values)) == MANIFEST["cfw"]
