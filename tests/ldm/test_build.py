"""One builder of models: what a checkpoint, a learning rate and a mistake become."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_run import write_tiny_model

from basicsr.utils.errors import UserError
from ldm.config import load_config
from ldm.models.build import build_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny.yaml and model.ckpt."""
    path = tmp_path_factory.mktemp("tiny")
    write_tiny_model(path)
    return path


def test_a_checkpoint_is_loaded_whole_whatever_training_was_to_start_from(folder: Path) -> None:
    words = [
        "model.params.ckpt_path=missing.ckpt",
        "model.params.ignore_keys=[model.]",
        "model.params.first_stage_config.params.ckpt_path=missing.safetensors",
    ]
    model = build_model(load_config([folder / "tiny.yaml"], words), ckpt=folder / "model.ckpt")
    saved = torch.load(folder / "model.ckpt", weights_only=True)["state_dict"]
    state = model.state_dict()
    assert set(state) == set(saved) and all(torch.equal(value, saved[key]) for key, value in state.items())


def test_a_checkpoint_without_the_autoencoder_leaves_it_to_its_own_file(folder: Path) -> None:
    state = torch.load(folder / "model.ckpt", weights_only=True)["state_dict"]
    first = "first_stage_model."
    save_file({key: value for key, value in state.items() if not key.startswith(first)}, folder / "rest.safetensors")
    own = {key.removeprefix(first): value + 1 for key, value in state.items() if key.startswith(first)}
    save_file(own, folder / "vae.safetensors")
    word = f"model.params.first_stage_config.params.ckpt_path={folder / 'vae.safetensors'}"
    model = build_model(load_config([folder / "tiny.yaml"], [word]), ckpt=folder / "rest.safetensors")
    got = model.first_stage_model.state_dict()
    assert all(torch.equal(got[key], value) for key, value in own.items())


def test_the_learning_rate_is_the_callers(folder: Path) -> None:
    config = load_config([folder / "tiny.yaml"])
    assert build_model(config, learning_rate=3e-4).configure_optimizers().param_groups[0]["lr"] == 3e-4
    with pytest.raises(UserError, match=r"model.params.learning_rate is not a key .* model.base_learning_rate"):
        build_model(load_config([folder / "tiny.yaml"], ["model.params.learning_rate=1"]), learning_rate=3e-4)


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("model.params.edge_crop=0", "model.params.edge_crop is 0: give a number of 1 or more"),
        ("model.params.scale_factor=0", "model.params.scale_factor is 0"),
        ("model.params.parameterization=epsilon", "model.params.parameterization is 'epsilon'; choose eps"),
    ],
)
def test_a_value_that_cannot_be_is_told_by_its_key(word: str, line: str, folder: Path) -> None:
    with pytest.raises(UserError, match=line):
        build_model(load_config([folder / "tiny.yaml"], [word]))


def test_no_random_numbers_are_drawn_where_the_file_has_all_weights(folder: Path) -> None:
    config = load_config([folder / "tiny.yaml"])
    torch.manual_seed(0)
    before = torch.get_rng_state()
    model = build_model(config, ckpt=folder / "model.ckpt")
    assert torch.equal(torch.get_rng_state(), before)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert trained and len(trained) < len(list(model.parameters()))
    file = (folder / "model.ckpt").read_bytes()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert (folder / "model.ckpt").read_bytes() == file  # the weights are a view of the file, which stays as it is


def test_what_the_file_lacks_begins_as_it_does_without_a_file(folder: Path) -> None:
    """Stable Diffusion has no SPADE and no structure encoder: theirs are the seed's, the rest is the file's."""
    state = torch.load(folder / "model.ckpt", weights_only=True)["state_dict"]
    new = [key for key in state if ".spade." in key or key.startswith("structcond_stage_model.")]
    save_file({key: value + 1 for key, value in state.items() if key not in new}, folder / "sd.safetensors")
    torch.manual_seed(3)
    fresh = build_model(load_config([folder / "tiny.yaml"], ["model.params.ckpt_path=null"])).state_dict()
    torch.manual_seed(3)
    path = f"model.params.ckpt_path={folder / 'sd.safetensors'}"
    got = build_model(load_config([folder / "tiny.yaml"], [path])).state_dict()
    assert new and all(torch.equal(got[key], fresh[key]) for key in new)
    schedule = {key for key in got if "." not in key}
    assert all(torch.equal(got[key], state[key] + 1) for key in got if key not in {*new, *schedule})


def test_one_lacking_weight_is_told_as_ever(folder: Path) -> None:
    state = torch.load(folder / "model.ckpt", weights_only=True)["state_dict"]
    key = next(key for key in state if key.startswith("structcond_stage_model."))
    save_file({name: value for name, value in state.items() if name != key}, folder / "lacking.safetensors")
    with pytest.raises(UserError, match=f"{key}, of shape .* is not in the file"):
        build_model(load_config([folder / "tiny.yaml"]), ckpt=folder / "lacking.safetensors")
