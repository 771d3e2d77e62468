import logging
import os
import pickle
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from pytorch_lightning.callbacks import ModelCheckpoint
from reference.models import NO_LOSS, SMALL, stage1
from reference.parity import fill
from safetensors.torch import save_file
from torch import Tensor, nn

from basicsr.utils.errors import UserError
from ldm.models.autoencoder import AutoencoderKL
from ldm.models.diffusion.checkpoint import load_checkpoint
from ldm.models.formats.reading import read_state_dict

State = dict[str, Tensor]


@pytest.fixture
def layers() -> nn.Sequential:
    return fill(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)))


@pytest.fixture(scope="module")
def complete() -> State:
    """The state of a small stage-1 model."""
    return stage1().state_dict()


def refusal(path: Path) -> str:
    """The one line with which a file is refused."""
    with pytest.raises(UserError) as caught:
        read_state_dict(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


# Files that load


@pytest.mark.parametrize("form", ["lightning.ckpt", "bare.pth", "bare.safetensors", "old.ckpt"])
def test_every_published_form_is_read(form: str, layers: nn.Sequential, tmp_path: Path) -> None:
    path, state = tmp_path / form, layers.state_dict()
    if form.endswith(".safetensors"):
        save_file(state, path)
    elif form == "lightning.ckpt":
        torch.save({"state_dict": state, "global_step": 7, "optimizer_states": [{"lr": 1e-4}], "epoch": 0}, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form != "old.ckpt")
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    report = load_checkpoint(model, path)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert (set(report.loaded), report.new, report.unused) == (set(state), (), ())


def test_classes_that_lightning_left_in_checkpoints_are_passed_over(layers: nn.Sequential, tmp_path: Path) -> None:
    path = tmp_path / "old_lightning.ckpt"
    torch.save(
        {
            "callbacks": {ModelCheckpoint: {"best_model_score": torch.tensor(0.1), "dirpath": Path("logs")}},
            "hyper_parameters": {"config": OmegaConf.create({"a": [1, {"b": 2.0}]}), "scale": np.float64(3.0)},
            "state_dict": layers.state_dict(),
        },
        path,
    )
    read = read_state_dict(path)
    assert all(torch.equal(value, read[key]) for key, value in layers.state_dict().items())


def test_half_precision_weights_are_widened(layers: nn.Sequential, tmp_path: Path) -> None:
    path = tmp_path / "half.safetensors"
    save_file({key: value.half() for key, value in layers.state_dict().items()}, path)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    load_checkpoint(model, path)
    assert model.get_parameter("0.weight").dtype == torch.float32
    assert torch.equal(model.get_parameter("0.weight"), layers.get_parameter("0.weight").half().float())


# Files that must not run


class Payload:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, Any]:
        return self.call


def payloads(target: Path) -> dict[str, Payload]:
    return {
        "system": Payload(os.system, f"touch {target}"),
        "eval": Payload(eval, f"open({str(target)!r}, 'w')"),
        "subprocess": Payload(subprocess.check_output, ["touch", str(target)]),
        "open": Payload(open, target, "w"),
    }


@pytest.mark.parametrize("name", ["system", "eval", "subprocess", "open"])
@pytest.mark.parametrize("archive", [True, False])
@pytest.mark.parametrize("place", ["beside", "among the tensors", "file"])
def test_a_malicious_pickle_does_nothing(name: str, archive: bool, place: str, tmp_path: Path) -> None:
    target, path = tmp_path / "ran", tmp_path / "evil.ckpt"
    payload, tensors = payloads(target)[name], {"weight": torch.ones(2)}
    content = {
        "beside": {"state_dict": tensors, "hook": payload},
        "among the tensors": {**tensors, "bias": payload},
        "file": payload,
    }[place]
    torch.save(content, path, _use_new_zipfile_serialization=archive)
    try:
        read = read_state_dict(path)
    except UserError as error:
        assert "\n" not in str(error)
        assert "weights_only" not in str(error)  # PyTorch advises to turn it off
    else:
        assert archive
        assert set(read) == {"weight"}
    assert not target.exists()
    torch.load(path, weights_only=False)  # the payload is real: plain unpickling runs it
    assert target.exists()


def test_a_pickle_dressed_as_an_archive_does_nothing(tmp_path: Path) -> None:
    target, path = tmp_path / "ran", tmp_path / "evil.ckpt"
    torch.save({"weight": torch.ones(2)}, tmp_path / "good.ckpt")
    evil = pickle.dumps(payloads(target)["system"], protocol=2)
    path.write_bytes(evil + (tmp_path / "good.ckpt").read_bytes())
    refusal(path)
    assert not target.exists()


# Files that cannot be read


def test_unreadable_files_are_refused_in_one_line(layers: nn.Sequential, tmp_path: Path) -> None:
    torch.save(layers.state_dict(), tmp_path / "good.ckpt")
    whole = (tmp_path / "good.ckpt").read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(whole[: len(whole) // 2])
    middle = len(whole) // 3
    (tmp_path / "spoilt.ckpt").write_bytes(whole[:40] + bytes(255 - b for b in whole[40:middle]) + whole[middle:])
    (tmp_path / "text.ckpt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    (tmp_path / "empty.ckpt").touch()
    (tmp_path / "text.safetensors").write_text("not a header")
    (tmp_path / "empty.safetensors").touch()
    save_file(layers.state_dict(), tmp_path / "good.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "good.safetensors").read_bytes()[:-8])
    (tmp_path / "page.ckpt").write_text("<!DOCTYPE html><title>Sign in</title>")
    for name in ("cut.ckpt", "spoilt.ckpt", "text.ckpt", "empty.ckpt", "page.ckpt",
                 "text.safetensors", "empty.safetensors", "cut.safetensors"):  # fmt: skip
        assert "cannot be read as a checkpoint" in refusal(tmp_path / name)
    assert "git lfs pull" in refusal(tmp_path / "text.ckpt") and "a web page" in refusal(tmp_path / "page.ckpt")
    (tmp_path / "folder.ckpt").mkdir()
    assert "it is a folder" in refusal(tmp_path / "folder.ckpt")
    assert "check the path" in refusal(tmp_path / "missing.ckpt")
    for name, content in (("list.ckpt", [1, 2]), ("numbers.ckpt", {"a": 1}), ("none.ckpt", {"state_dict": None})):
        torch.save(content, tmp_path / name)
        assert "holds no tensors" in refusal(tmp_path / name)


# What does not fit


def write(state: State, path: Path) -> str:
    save_file({key: value.contiguous().clone() for key, value in state.items()}, path)
    return str(path)


def test_a_missing_tensor_is_named_with_its_shape(layers: nn.Sequential, tmp_path: Path) -> None:
    state = layers.state_dict()
    del state["1.weight"], state["1.bias"]
    path = write(state, tmp_path / "part.safetensors")
    with pytest.raises(UserError, match=r"1\.weight, of shape \(2, 4\).*and 1 more.*use a complete checkpoint"):
        load_checkpoint(layers, path)
    before = layers.get_parameter("1.weight").detach().clone()
    report = load_checkpoint(layers, path, ignore_keys=["1."])
    assert set(report.new) == {"1.weight", "1.bias"}
    assert torch.equal(layers.get_parameter("1.weight"), before)


def test_a_tensor_of_another_shape_is_named_with_both(layers: nn.Sequential, tmp_path: Path) -> None:
    state = {**layers.state_dict(), "0.weight": torch.zeros(4, 5)}
    before = {key: value.clone() for key, value in layers.state_dict().items()}
    path = write(state, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"0\.weight.*\(4, 5\) in the file but \(4, 3\).*use the config that belongs"):
        load_checkpoint(layers, path)
    assert all(torch.equal(value, before[key]) for key, value in layers.state_dict().items())  # nothing half loaded
    report = load_checkpoint(layers, path, ignore_keys=["0.weight"])
    assert (report.new, report.unused) == (("0.weight",), ("0.weight",))


def test_keys_are_ignored_by_prefix(layers: nn.Sequential, tmp_path: Path) -> None:
    zeros = {key: torch.zeros_like(value) for key, value in layers.state_dict().items()}
    path = write(zeros, tmp_path / "zeros.safetensors")
    report = load_checkpoint(layers, path, ignore_keys=["0.", "1.b"])
    assert set(report.loaded) == {"1.weight"}
    assert torch.count_nonzero(layers.get_parameter("0.weight")) > 0
    assert torch.count_nonzero(layers.get_parameter("1.weight")) == 0


def test_what_the_file_has_too_much_is_reported(layers: nn.Sequential, tmp_path: Path) -> None:
    extra = {**layers.state_dict(), "model_ema.decay": torch.tensor(0.9), "loss.discriminator.weight": torch.ones(2)}
    report = load_checkpoint(layers, write(extra, tmp_path / "extra.safetensors"))
    assert set(report.unused) == {"model_ema.decay", "loss.discriminator.weight"}
    assert "4 tensors loaded" in str(report)
    assert "unused: 2 (loss 1, model_ema 1)" in str(report)
    assert "\n" not in str(report)


# Whole models


def test_a_stage_1_checkpoint_starts_a_model(complete: State, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(complete, tmp_path / "stage1.safetensors")
    with caplog.at_level(logging.INFO, logger="ldm"):
        model = stage1(filled=False, ckpt_path=path)
    assert all(torch.equal(value, complete[key]) for key, value in model.state_dict().items())
    (report,) = (message for message in caplog.messages if "tensors loaded" in message)
    assert report.endswith(f"{len(complete)} tensors loaded; new, left as initialised: 0; in the file but unused: 0")
    assert "random weights" not in caplog.text


def test_stable_diffusion_lacks_spade_and_structure(
    complete: State, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = {
        key: value
        for key, value in complete.items()
        if ".spade." not in key and not key.startswith("structcond_stage_model.")
    }
    path = write(base, tmp_path / "sd.safetensors")
    with caplog.at_level(logging.INFO, logger="ldm"):
        model = stage1(filled=False, ckpt_path=path)
    assert all(torch.equal(value, base[key]) for key, value in model.state_dict().items() if key in base)
    spade = sum(".spade." in key for key in complete)
    structure = sum(key.startswith("structcond_stage_model.") for key in complete)
    assert f"SPADE {spade}" in caplog.text
    assert f"structcond_stage_model {structure}" in caplog.text


@pytest.mark.parametrize(
    "lost",
    [
        "model.diffusion_model.middle_block.0.spade.mlp_beta.bias",
        "structcond_stage_model.fea_tran.0.in_layers.0.weight",
        "first_stage_model.decoder.conv_in.weight",
        "cond_stage_model.model.ln_final.bias",
    ],
)
def test_a_part_that_is_missing_in_part_is_an_error(lost: str, complete: State, tmp_path: Path) -> None:
    path = write({key: value for key, value in complete.items() if key != lost}, tmp_path / "part.safetensors")
    with pytest.raises(UserError, match=f"{lost}, of shape .* is not in the file; use"):
        stage1(filled=False, ckpt_path=path)
    model = stage1(filled=False, ckpt_path=path, ignore_keys=[lost])
    assert torch.equal(model.state_dict()["betas"], complete["betas"])


def test_a_checkpoint_without_autoencoder_takes_that_of_its_own_file(
    complete: State, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prefix = "first_stage_model."
    own = {key.removeprefix(prefix): value for key, value in complete.items() if key.startswith(prefix)}
    first_stage = {
        "target": "ldm.models.autoencoder.AutoencoderKL",
        "params": {
            "embed_dim": 4,
            "ddconfig": SMALL["first_stage"],
            "lossconfig": NO_LOSS,
            "ckpt_path": write(own, tmp_path / "autoencoder.safetensors"),
        },
    }
    rest = {key: value for key, value in complete.items() if not key.startswith(prefix)}
    path = write(rest, tmp_path / "rest.safetensors")
    with caplog.at_level("INFO"):
        state = stage1(filled=False, first_stage_config=first_stage, ckpt_path=path).state_dict()
    assert all(torch.equal(value, state[key]) for key, value in complete.items())
    assert sum("that part keeps the weights of its own ckpt_path" in line for line in caplog.messages) == 1
    with pytest.raises(UserError, match="first_stage_model.* is not in the file"):
        stage1(filled=False, ckpt_path=path)
    less = {key: value for key, value in rest.items() if key != "model.diffusion_model.out.2.weight"}
    assert len(less) == len(rest) - 1
    with pytest.raises(UserError, match="out.2.weight, of shape .* is not in the file"):
        stage1(filled=False, first_stage_config=first_stage, ckpt_path=write(less, tmp_path / "less.safetensors"))


def test_a_checkpoint_of_another_schedule_may_start_a_model(complete: State, tmp_path: Path) -> None:
    path = write(complete, tmp_path / "stage1.safetensors")
    model = stage1(filled=False, ckpt_path=path, time_replace=10)
    assert len(model.get_buffer("betas")) == 10
    without = {key: value for key, value in complete.items() if "." in key}
    assert (
        len(stage1(filled=False, ckpt_path=write(without, tmp_path / "bare.safetensors")).get_buffer("betas")) == 1000
    )


def test_no_checkpoint_means_random_weights_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    stage1(filled=False)
    assert [message for message in caplog.messages if "random weights" in message] == [
        "model.params.ckpt_path is null: the U-Net starts from random weights"
    ]


@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
def test_the_autoencoder_takes_its_own_checkpoint_or_its_part_of_a_whole_one(
    prefix: str, complete: State, tmp_path: Path
) -> None:
    own = {
        key.removeprefix("first_stage_model."): value
        for key, value in complete.items()
        if key.startswith("first_stage_model.")
    }
    path = write(complete if prefix else own, tmp_path / "weights.safetensors")
    vae = AutoencoderKL(ddconfig=SMALL["first_stage"], lossconfig=NO_LOSS, embed_dim=4, ckpt_path=path)
    assert set(vae.state_dict()) == set(own)
    assert all(torch.equal(value, own[key]) for key, value in vae.state_dict().items())


def test_tensors_that_share_memory_in_the_file_do_not_in_the_model(layers: nn.Sequential, tmp_path: Path) -> None:
    state = layers.state_dict()
    whole = torch.arange(40.0)
    parts = {key: whole[: value.numel()].view(value.shape) for key, value in state.items()}
    torch.save({"state_dict": parts}, tmp_path / "shared.ckpt")
    load_checkpoint(layers, tmp_path / "shared.ckpt")
    with torch.no_grad():
        layers.get_parameter("0.weight").zero_()
    assert layers.get_parameter("1.weight").flatten()[1] == 1
    torch.save(layers.state_dict(), tmp_path / "again.ckpt")
    assert (tmp_path / "again.ckpt").stat().st_size < 10_000


def test_weights_are_brought_to_the_models_precision(layers: nn.Sequential, tmp_path: Path) -> None:
    half = {key: value.half() for key, value in layers.state_dict().items()}
    load_checkpoint(layers, write(half, tmp_path / "half.safetensors"))
    assert all(torch.equal(value, half[key].float()) for key, value in layers.state_dict().items())
    assert all(value.dtype == torch.float32 for value in layers.parameters())
