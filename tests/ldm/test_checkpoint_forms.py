"""Checkpoints as other tools leave them: file names that lie, wrapped keys, and what is said where they do not fit."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from reference.models import NO_LOSS, SMALL, stage1
from safetensors.torch import save_file
from torch import Tensor, nn

from basicsr.utils.errors import UserError
from ldm.models.autoencoder import AutoencoderKL
from ldm.models.diffusion.checkpoint import canonical, load_checkpoint, read_state_dict

State = dict[str, Tensor]
UNET = "model.diffusion_model."


@pytest.fixture(scope="module")
def complete() -> State:
    """The state of a small stage-1 model."""
    return stage1().state_dict()


def prefixed(prefix: str) -> Callable[[State], State]:
    return lambda state: {prefix + key: value for key, value in state.items()}


def inside(part: str, wrapper: str) -> Callable[[State], State]:
    return lambda state: {key.replace(part, part + wrapper, 1): value for key, value in state.items()}


def averaged_beside_the_last(state: State) -> State:
    last = {f"online_model.{key}": torch.zeros_like(value) for key, value in state.items()}
    return {**last, **prefixed("ema_model.")(state), "initted": torch.tensor(True), "step": torch.tensor(9)}


WRAPPED: dict[str, Callable[[State], object]] = {
    "DDP": prefixed("module."),
    "DDP around the U-Net": inside(UNET, "module."),
    "compiled": prefixed("_orig_mod."),
    "the U-Net compiled": inside(UNET, "_orig_mod."),
    "compiled in DDP": prefixed("module._orig_mod."),
    "FSDP": inside(UNET, "_fsdp_wrapped_module."),
    "activation checkpointing": inside(UNET + "middle_block.0.", "_checkpoint_wrapped_module."),
    "DeepSpeed in Lightning": prefixed("_forward_module."),
    "DeepSpeed": lambda state: {"module": state, "ds_version": "0.16", "global_steps": 3},
    "BasicSR": lambda state: {"params": {key: value * 0 for key, value in state.items()}, "params_ema": state},
    "a trainer": lambda state: {"epoch": 3, "model_state_dict": prefixed("module.")(state)},
    "a class of one's own": lambda state: {"state_dict": {**prefixed("net.")(state), "teacher.weight": torch.ones(1)}},
    "a class that calls it model": lambda state: {"state_dict": prefixed("model.")(state)},
    "averaged": lambda state: {**prefixed("module.")(state), "n_averaged": torch.tensor(4)},
    "averaged beside the last": averaged_beside_the_last,
}


@pytest.mark.parametrize("name", [*WRAPPED])
def test_what_wrappers_add_is_taken_off_and_reported(
    name: str, complete: State, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save(WRAPPED[name](complete), tmp_path / "wrapped.ckpt")
    with caplog.at_level(logging.INFO, logger="ldm"):
        model = stage1(filled=False, ckpt_path=str(tmp_path / "wrapped.ckpt"))
    assert all(torch.equal(value, complete[key]) for key, value in model.state_dict().items())
    told = [message for message in caplog.messages if "taken" in message]
    assert len(told) == 1 and told[0].startswith(f"{tmp_path / 'wrapped.ckpt'}: ")


def test_names_without_wrappers_are_left_as_they_are(complete: State) -> None:
    parts = [key for key in complete if not key.startswith(UNET)]
    for state in (
        complete,
        {key: complete[key] for key in parts},
        {"0.weight": torch.ones(1), "0.bias": torch.ones(1)},
    ):
        assert canonical({"state_dict": state}) == (state, [])


@pytest.mark.parametrize("prefix", ["module.", "vae.", "module.first_stage_model.", "net.first_stage_model."])
def test_an_autoencoder_finds_its_weights_under_a_prefix(prefix: str, complete: State, tmp_path: Path) -> None:
    own = {key.removeprefix("first_stage_model."): value for key, value in complete.items() if "first_stage" in key}
    save_file({prefix + key: value for key, value in own.items()}, tmp_path / "vae.safetensors")
    vae = AutoencoderKL(SMALL["first_stage"], NO_LOSS, 4, ckpt_path=str(tmp_path / "vae.safetensors"))
    assert all(torch.equal(value, own[key]) for key, value in vae.state_dict().items())


def test_two_tensors_of_one_name_are_refused(tmp_path: Path) -> None:
    torch.save({"0.weight": torch.ones(1), "module.0.weight": torch.zeros(1)}, tmp_path / "both.ckpt")
    with pytest.raises(UserError, match=r"holds 0\.weight twice, as 0\.weight and as module\.0\.weight"):
        read_state_dict(tmp_path / "both.ckpt")


@pytest.mark.parametrize("name", ["model.ckpt", "X.SAFETENSORS", "weights", "model.safetensors", "model.bin"])
@pytest.mark.parametrize("form", ["safetensors", "archive", "pickle"])
def test_the_kind_of_file_is_told_by_its_content(name: str, form: str, tmp_path: Path) -> None:
    state = nn.Linear(3, 4).state_dict()
    if form == "safetensors":
        save_file(state, tmp_path / name)
    else:
        torch.save(state, tmp_path / name, _use_new_zipfile_serialization=form == "archive")
    read = read_state_dict(tmp_path / name)
    assert all(torch.equal(value, state[key]) for key, value in read.items()) and len(read) == 2


def test_attention_weights_of_linear_layers_are_reshaped(
    complete: State, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    linear = {
        key: value[:, :, 0, 0].clone() if ".attn_1." in key and value.ndim == 4 else value
        for key, value in complete.items()
    }
    shaped = [key for key in complete if linear[key].shape != complete[key].shape]
    save_file(linear, tmp_path / "linear.safetensors")
    with caplog.at_level(logging.INFO, logger="ldm"):
        model = stage1(filled=False, ckpt_path=str(tmp_path / "linear.safetensors"))
    assert shaped and f"{len(shaped)} tensors reshaped" in caplog.text
    assert all(torch.equal(value, complete[key]) for key, value in model.state_dict().items())


def test_only_axes_of_length_one_are_reshaped(tmp_path: Path) -> None:
    for index, shape in enumerate([(3, 2), (6,), (2, 3, 2), (1, 2, 3)]):
        save_file({"weight": torch.zeros(shape), "bias": torch.zeros(2)}, tmp_path / f"{index}.safetensors")
        with pytest.raises(UserError, match="has shape"):
            load_checkpoint(nn.Linear(3, 2), tmp_path / f"{index}.safetensors")


@pytest.mark.parametrize(
    "part", ["cond_stage_model.", "first_stage_model.", "first_stage_model.decoder.", UNET + "out."]
)
def test_nothing_that_pictures_depend_on_is_advised_to_be_left_random(
    part: str, complete: State, tmp_path: Path
) -> None:
    without = {key: value for key, value in complete.items() if not key.startswith(part)}
    save_file(without, tmp_path / "part.safetensors")
    other = {key: torch.zeros(5, 5, 5) if key.startswith(part) else value for key, value in complete.items()}
    save_file(other, tmp_path / "other.safetensors")
    for file, advice in (("part", "use a complete checkpoint"), ("other", "use the config that belongs")):
        with pytest.raises(UserError) as error:
            stage1(filled=False, ckpt_path=str(tmp_path / f"{file}.safetensors"))
        assert advice in str(error.value) and part in str(error.value)
        assert "ignore_keys" not in str(error.value) and "initial" not in str(error.value)


def test_a_checkpoint_of_another_model_is_told(tmp_path: Path) -> None:
    save_file({"down_blocks.0.resnets.0.conv1.weight": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"of another model: none of its 1 tensors \(down_blocks\.0"):
        load_checkpoint(nn.Linear(3, 2), tmp_path / "other.safetensors")
