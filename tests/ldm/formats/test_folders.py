"""Weights in diffusers' layout: all keys at full size, folders in all forms, and what is said where they lack."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from reference.models import NO_LOSS, SMALL, stage1
from reference.parity import FOLDER, MANIFEST
from safetensors.torch import save_file
from torch import Tensor

from basicsr.utils.errors import UserError
from ldm.models.autoencoder import AutoencoderKL
from ldm.models.diffusion.checkpoint import load_checkpoint
from ldm.models.formats import diffusers_keys as keys
from ldm.models.formats.diffusers_folder import PARTS
from ldm.models.formats.reading import read_state_dict

State = dict[str, Tensor]
# Keys and shapes of diffusers 0.42's and transformers 5.24's classes with Stable Diffusion 2.1's settings.
FULL: dict[str, dict[str, list[int]]] = json.loads(gzip.decompress((FOLDER / "sd21_diffusers.json.gz").read_bytes()))
TEXT = {"arch": {"width": 32, "layers": 2, "heads": 2}, "max_length": 5}
COND = {"target": "ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder", "params": TEXT}
BACK = {"unet": keys.unet_to_diffusers, "vae": keys.vae_to_diffusers, "text_encoder": keys.text_to_transformers}


def on_meta(shapes: dict[str, list[int]]) -> State:
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


def shapes(state: State) -> dict[str, list[int]]:
    return {key: list(value.shape) for key, value in state.items()}


@pytest.mark.parametrize("part", PARTS)
def test_every_key_of_the_full_size_maps_and_none_is_left(part: str) -> None:
    prefix, to_ours = PARTS[part]
    ours = to_ours(on_meta(FULL[part]))
    expected = {
        key.removeprefix(prefix): shape
        for key, shape in MANIFEST["stage1"].items()
        if key.startswith(prefix) and ".spade." not in key
    }
    unused = [
        key for key in expected if key.startswith(("transformer.resblocks.23.", "text_projection", "logit_scale"))
    ]
    assert len(unused) == (14 if part == "text_encoder" else 0)
    assert shapes(ours) == {key: shape for key, shape in expected.items() if key not in unused}
    assert shapes(BACK[part](ours)) == FULL[part]


@pytest.fixture(scope="module")
def whole() -> State:
    return stage1(cond_stage_config=COND).state_dict()


def parts_of(state: State) -> dict[str, State]:
    """A pipeline's networks, as diffusers and transformers name their weights."""
    found = {
        part: {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        for part, (prefix, _) in PARTS.items()
    }
    return {
        "unet": keys.unet_to_diffusers(found["unet"]),
        "vae": keys.vae_to_diffusers(found["vae"]),
        "text_encoder": keys.text_to_transformers(found["text_encoder"], 1),
    }


def save(folder: Path, state: State, name: str = "diffusion_pytorch_model.safetensors") -> None:
    folder.mkdir(parents=True)
    save_file({key: value.contiguous() for key, value in state.items()}, folder / name)


def save_shards(folder: Path, state: State, index: str, shard: str) -> None:
    folder.mkdir(parents=True)
    names = list(state)
    weight_map: dict[str, str] = {}
    for number, mine in enumerate((names[::2], names[1::2]), 1):
        save_file({key: state[key].contiguous() for key in mine}, folder / shard.format(number))
        weight_map |= dict.fromkeys(mine, shard.format(number))
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.fixture
def pipeline(tmp_path: Path, whole: State) -> Path:
    parts = parts_of(whole)
    save(tmp_path / "sd/unet", parts["unet"])
    save(tmp_path / "sd/vae", parts["vae"])
    save(tmp_path / "sd/text_encoder", parts["text_encoder"], "model.safetensors")
    return tmp_path / "sd"


def test_a_folder_starts_a_training_and_what_no_picture_needs_is_said_to_be_new(
    pipeline: Path, whole: State, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="ldm"):
        model = stage1(filled=False, cond_stage_config=COND, ckpt_path=str(pipeline))
    unused = ("cond_stage_model.model.transformer.resblocks.1.", "cond_stage_model.model.text_projection")
    new = [k for k in whole if ".spade." in k or k.startswith(("structcond", *unused)) or k.endswith("logit_scale")]
    loaded = model.state_dict()
    assert all(torch.equal(loaded[key], whole[key]) for key in whole if key not in new)
    assert any("left as initialised: text weights without effect (14 tensors)" in line for line in caplog.messages)
    with torch.no_grad():
        first, second = stage1(cond_stage_config=COND), model
        for one, other in zip(first.contexts(["a cat", ""]), second.contexts(["a cat", ""]), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("index", "shard"),
    [
        ("diffusion_pytorch_model.safetensors.index.json", "diffusion_pytorch_model-0000{}-of-00002.safetensors"),
        (
            "diffusion_pytorch_model.safetensors.index.fp16.json",
            "diffusion_pytorch_model.fp16-0000{}-of-00002.safetensors",
        ),
        (
            "diffusion_pytorch_model.safetensors.fp16.index.json",
            "diffusion_pytorch_model.fp16-0000{}-of-00002.safetensors",
        ),
    ],
)
def test_shards_are_put_together(tmp_path: Path, whole: State, index: str, shard: str) -> None:
    parts = parts_of(whole)
    save_shards(tmp_path / "unet", parts["unet"], index, shard)
    save(tmp_path / "vae", {k: v.half() for k, v in parts["vae"].items()}, "diffusion_pytorch_model.fp16.safetensors")
    read = read_state_dict(tmp_path)
    unet = {key for key in whole if key.startswith("model.diffusion_model.") and ".spade." not in key}
    assert all(torch.equal(read[key], whole[key]) for key in unet)
    assert {value.dtype for key, value in read.items() if key not in unet} == {torch.float16}
    (tmp_path / "unet" / shard.format(2)).unlink()
    with pytest.raises(UserError, match=r"unet lacks 1 of 2 shards: .*-00002-of-00002"):
        read_state_dict(tmp_path)


@pytest.mark.parametrize("as_file", [True, False])
def test_an_autoencoder_alone(tmp_path: Path, whole: State, as_file: bool) -> None:
    save(tmp_path / "mse", parts_of(whole)["vae"])
    source = tmp_path / "mse" / "diffusion_pytorch_model.safetensors" if as_file else tmp_path / "mse"
    autoencoder = AutoencoderKL(SMALL["first_stage"], NO_LOSS, 4)
    load_checkpoint(
        autoencoder, source, select=lambda state: {k.removeprefix("first_stage_model."): v for k, v in state.items()}
    )
    loaded = AutoencoderKL(SMALL["first_stage"], NO_LOSS, 4, ckpt_path=str(source)).state_dict()
    for key, value in autoencoder.state_dict().items():
        assert torch.equal(value, whole[f"first_stage_model.{key}"]) and torch.equal(value, loaded[key])


def test_what_a_folder_lacks_is_named(pipeline: Path) -> None:
    (pipeline / "vae/diffusion_pytorch_model.safetensors").rename(pipeline / "vae/other")
    with pytest.raises(UserError, match=r"vae holds no weights: diffusion_pytorch_model\.safetensors or another"):
        read_state_dict(pipeline)
    (pipeline / "vae/other").unlink()
    (pipeline / "vae").rmdir()
    with pytest.raises(UserError, match=r"sd has no vae: first_stage_model\."):
        stage1(filled=False, cond_stage_config=COND, ckpt_path=str(pipeline))


def test_an_incomplete_network_and_an_index_that_is_none(tmp_path: Path, whole: State) -> None:
    text = parts_of(whole)["text_encoder"]
    save(tmp_path / "a/text_encoder", {k: v for k, v in text.items() if "v_proj" not in k}, "model.safetensors")
    with pytest.raises(UserError, match=r"text_encoder is incomplete: it has no .*v_proj"):
        read_state_dict(tmp_path / "a")
    (tmp_path / "b/unet").mkdir(parents=True)
    (tmp_path / "b/unet/diffusion_pytorch_model.safetensors.index.json").write_text("[]")
    with pytest.raises(UserError, match=r"index\.json is not an index of shards"):
        read_state_dict(tmp_path / "b")


def test_a_module_on_top_of_stable_diffusion_is_the_whole_model(tmp_path: Path, pipeline: Path, whole: State) -> None:
    module = {key: value for key, value in whole.items() if "spade" in key or "structcond" in key}
    torch.save(module, tmp_path / "webui.ckpt")
    model = stage1(filled=False, cond_stage_config=COND, ckpt_path=[str(pipeline), str(tmp_path / "webui.ckpt")])
    assert all(torch.equal(value, module[key]) for key, value in model.state_dict().items() if key in module)
