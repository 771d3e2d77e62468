"""What published YAMLs carry beside a constructor's arguments: ignored, fixed or folded, and never silently wrong."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint
from reference.models import stage1

from basicsr.utils.errors import FieldError, UserError
from ldm.config import check_config, load_config
from ldm.published import BLOCKS, FIXED, FOLDED, IGNORED, flat_names, translated
from ldm.util import check_arguments, get_obj_from_str

STAGE_1 = "ldm.models.diffusion.ddpm.LatentDiffusionSRTextWT"
EDGE_YAML = Path(__file__).parents[2] / "configs/stableSRNew/v2-finetune_text_T_512_edge_800.yaml"


@pytest.mark.parametrize("target", sorted({*IGNORED, *FIXED, *FOLDED}))
def test_the_tables_fit_the_constructors(target: str) -> None:
    signature = inspect.signature(get_obj_from_str(target)).parameters
    assert not set(signature) & flat_names(target)
    for block, name in FOLDED.get(target, {}).values():
        assert block in signature
        assert name in inspect.signature(get_obj_from_str(BLOCKS[target][block])).parameters
    for block, options in BLOCKS.get(target, {}).items():  # and every option of a block has its flat name
        names = set(inspect.signature(get_obj_from_str(options)).parameters)
        assert names == {name for place, name in FOLDED[target].values() if place == block}


def test_constructors_fit_on_two_hands() -> None:
    counts = {target: len(inspect.signature(get_obj_from_str(target)).parameters) + 1 for target in IGNORED}
    assert counts[STAGE_1] <= 24
    assert max(count for target, count in counts.items() if target != STAGE_1) <= 16


def test_flat_keys_and_blocks_mean_the_same() -> None:
    flat = stage1(filled=False, edge_loss_weight=0.5, edge_crop=4, edge_decoder_checkpoint=True, loss_type="l1")
    blocks = stage1(
        filled=False, edge_loss_weight=0.5, edge={"crop": 4, "decoder_checkpoint": True}, loss={"loss_type": "l1"}
    )
    mixed = stage1(filled=False, edge_loss_weight=0.5, edge={"crop": 4}, edge_decoder_checkpoint=True, loss_type="l1")
    for model in (flat, blocks, mixed):
        assert model.edge_loss.options == flat.edge_loss.options and model.edge_loss.options.crop == 4
        assert model.first_stage.recompute
        assert model.training_loss.loss_type == "l1"


@pytest.mark.parametrize(
    ("params", "field", "problem"),
    [
        ({"edge_crop": 4, "edge": {"crop": 8}}, "edge_crop", "is given twice, also as `crop` in the block `edge`"),
        ({"edge_crop": 4, "edge": 8}, "edge", "is 8: give a mapping"),
        ({"p2_gamma": 0.5}, "p2_gamma", "is 0.5, which is not supported: use None"),
        ({"conditioning_key": "concat"}, "conditioning_key", "use 'crossattn'"),
    ],
)
def test_what_cannot_be_meant_is_refused(params: dict[str, Any], field: str, problem: str) -> None:
    with pytest.raises(FieldError) as error:
        translated(STAGE_1, params)
    assert error.value.field == field and problem in error.value.problem


def test_what_nobody_reads_is_dropped_and_the_rest_stays() -> None:
    assert translated(STAGE_1, {"log_every_t": 200, "p2_k": None, "prompt": "x"}) == {"prompt": "x"}
    assert translated("torch.nn.Linear", {"log_every_t": 200}) == {"log_every_t": 200}
    params = {"image_size": 32, "dims": 2, "model_channels": 32}
    assert translated("ldm.modules.diffusionmodules.openaimodel.UNetModelDualcondV2", params) == {"model_channels": 32}


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("edge_crop=wide", "model.params.edge_crop: "),
        ("edge.crop=wide", "model.params.edge.crop: "),
        ("edge.crp=4", "did you mean 'crop'?"),
        ("edge_dilat=1", "did you mean 'edge_dilate'?"),
        ("log_evry_t=1", "did you mean 'log_every_t'?"),
        ("loss_type=[l1]", "model.params.loss_type: "),
        ("edge.decoder_checkpoint=false", "edge_decoder_checkpoint is given twice"),
        ("unet_config.params.dims=3", "model.params.unet_config.params.dims: "),
        ("edge_loss_weight=-1", "model.params.edge_loss_weight: "),
    ],
)
def test_an_error_names_file_and_key(word: str, line: str, tmp_path: Path) -> None:
    key, _, value = word.partition("=")
    for part in reversed(key.split(".")):
        value = f"{{{part}: {value}}}"
    file = tmp_path / "mine.yaml"
    file.write_text(f"base: {EDGE_YAML}\nmodel: {{params: {value}}}\n")
    with pytest.raises(UserError) as error:
        check_config(load_config([file]), trainer=pl.Trainer, modelcheckpoint=ModelCheckpoint)
    assert line in str(error.value) and "\n" not in str(error.value)
    assert str(error.value).startswith(f"{EDGE_YAML if 'twice' in line else file}: ")


def test_arguments_are_checked_as_they_are_given() -> None:
    build = get_obj_from_str(STAGE_1)
    configs: dict[str, Any] = {
        f"{name}_config": {} for name in ("first_stage", "cond_stage", "structcond_stage", "unet")
    }
    assert check_arguments(build, {**configs, "edge_crop": 8, "monitor": "x", "edge": {"dilate": 1}}, name="m") is None
    assert check_arguments(build, {**configs, "edge": {"dilate": "x"}}, name="m") == (
        "edge.dilate",
        "m takes int for 'edge.dilate', not 'x'",
    )
