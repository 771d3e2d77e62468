"""What a file is told to be: files of all kinds with the published keys and shapes, sparse: they take no room."""

import json
import resource
import struct
import time
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from reference.parity import MANIFEST
from tiny_run import write_tiny_model

from basicsr.utils.errors import FieldError, UserError
from ldm.models.formats.detect import STRUCTURE_INPUT, detect
from ldm.models.formats.inspect import describe
from ldm.shipped import root

Shapes = dict[str, list[int]]
STAGE_1: Shapes = MANIFEST["stage1"]
CFW: Shapes = MANIFEST["cfw"]
BYTES = {"F32": 4, "F16": 2}


def without(shapes: Shapes, *parts: str) -> Shapes:
    return {key: shape for key, shape in shapes.items() if not any(part in key for part in parts)}


def only(shapes: Shapes, *parts: str) -> Shapes:
    return {key: shape for key, shape in shapes.items() if any(part in key for part in parts)}


def sparse(path: Path, shapes: Shapes, dtype: str = "F32", told: dict[str, str] | None = None) -> Path:
    """A safetensors file of these shapes, whose zeros take no room on the disk."""
    header: dict[str, object] = {"__metadata__": told or {}}
    end = 0
    for key, shape in shapes.items():
        start, end = end, end + BYTES[dtype] * int(torch.Size(shape).numel())
        header[key] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return path


STABLE_DIFFUSION = without(STAGE_1, ".spade.", "structcond")
MODULE = only(STAGE_1, ".spade.", "structcond")
KINDS: dict[str, tuple[Shapes, str, Iterable[str]]] = {
    # name -> keys and shapes, the beginning of what it is called, what it may be used for
    "stage 1": (
        STAGE_1,
        "StableSR, stage 1 for 512, 768v or turbo",
        {"upscale --ckpt", "upscale --sd", "ckpt_path of stage 1's training", "ckpt_path of CFW's training"},
    ),
    "Stable Diffusion": (
        STABLE_DIFFUSION,
        "Stable Diffusion 2 (2.1 base or 2.1 with v-prediction",
        {"upscale --sd", "ckpt_path of stage 1's training", "ckpt_path of CFW's training"},
    ),
    "a module": (MODULE, "what StableSR adds to Stable Diffusion alone", ()),
    "CFW": (CFW, "a second-stage autoencoder (CFW)", {"upscale --cfw_ckpt", "ckpt_path of CFW's training"}),
    "CFW alone": (only(CFW, "fusion_layer"), "the layers of CFW alone", {"upscale --cfw_ckpt"}),
    "an autoencoder": (without(CFW, "fusion_layer"), "an autoencoder", {"ckpt_path of CFW's training"}),
    "a run's trained part": (
        MODULE | {"frozen_parts": [16]},
        "what a run trained, without the rest (save_trainable_only) for 512, 768v or turbo",
        (),
    ),
    "a trained U-Net": (
        without(STAGE_1, "first_stage_model", "cond_stage_model") | {"frozen_parts": [16]},
        "what a run trained, without the rest (save_trainable_only)",
        (),
    ),
    "another model": ({"head.weight": [3, 3]}, "no model that this project knows", ()),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_are_told_apart_with_what_each_is_of_use_for(kind: str, tmp_path: Path) -> None:
    shapes, name, uses = KINDS[kind]
    found = describe(sparse(tmp_path / "a.safetensors", shapes, "F16"))
    assert found.kind.startswith(name)
    assert {use for use, answer in found.uses.items() if answer == "yes"} == set(uses)
    assert sum(part.parameters for part in found.parts.values()) == sum(torch.Size(s).numel() for s in shapes.values())
    assert all(set(part.dtypes) == {"float16"} and not part.missing for part in found.parts.values())
    assert str(found).startswith(f"{tmp_path / 'a.safetensors'}: {name}")


def test_a_module_goes_with_stable_diffusion(tmp_path: Path) -> None:
    files = [sparse(tmp_path / "sd.safetensors", STABLE_DIFFUSION), sparse(tmp_path / "m.safetensors", MODULE)]
    assert describe(files[1]).uses["upscale --ckpt"].endswith("with --sd STABLE_DIFFUSION yes")
    assert describe(files).uses["upscale --ckpt"] == "yes"


def test_what_a_run_trained_goes_with_its_config(tmp_path: Path) -> None:
    found = describe(sparse(tmp_path / "a.safetensors", KINDS["a run's trained part"][0]))
    assert found.uses["upscale --ckpt"] == "yes, with the run's config, whose ckpt_path names the rest"


def test_a_hole_and_another_family(tmp_path: Path) -> None:
    found = describe(sparse(tmp_path / "a.safetensors", without(STAGE_1, "middle_block.1.")))
    assert "tensors of the U-Net" in found.uses["upscale --ckpt"] and found.parts["U-Net"].missing
    sd1 = {key: [shape[0], 768] if ".attn2.to_k" in key else shape for key, shape in STABLE_DIFFUSION.items()}
    assert describe(sparse(tmp_path / "b.safetensors", sd1)).kind.startswith(
        "Stable Diffusion 1, which this project has"
    )


def test_edges_as_a_condition_are_seen(tmp_path: Path) -> None:
    file = sparse(tmp_path / "a.safetensors", {**STAGE_1, STRUCTURE_INPUT: [256, 8, 3, 3]})
    assert "with edges as a condition (8 input channels)" in describe(file).kind
    assert detect(file, "512").config.get("model.params.structcond_stage_config.params.in_channels") == 8


def test_five_gigabytes_take_seconds_and_little_memory(tmp_path: Path) -> None:
    file = sparse(tmp_path / "a.safetensors", STAGE_1)
    assert file.stat().st_size > 5.6e9
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    describe(file)
    assert time.process_time() - started < 20
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 500  # MiB


def test_a_lightning_checkpoint_tells_its_step_and_its_run(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "configs").mkdir()
    state = write_tiny_model(tmp_path)
    file = tmp_path / "checkpoints" / "last.ckpt"
    torch.save({"state_dict": state, "global_step": 7, "epoch": 1}, file)
    assert describe(file).says == {"epoch": "1", "global_step": "7"}
    assert describe(file).kind == "StableSR, stage 1, of a size that is not shipped"
    with pytest.raises(UserError, match="the shapes of none of the shipped configs"):
        detect(file)
    (tmp_path / "tiny.yaml").rename(tmp_path / "configs" / "now-config.yaml")
    found = detect(file)
    assert "the config of its run" in found.how and found.config.get("model.params.edge_loss_weight") == 0


def test_what_shapes_cannot_tell_is_asked_for(tmp_path: Path) -> None:
    file = sparse(tmp_path / "a.safetensors", STAGE_1)
    with pytest.raises(FieldError, match=r"variant is not given, and .* say which it is, 512, 768v, turbo"):
        detect(file)
    with pytest.raises(FieldError, match="variant is '1024': use 512"):
        detect(file, "1024")
    found = {variant: detect(file, variant) for variant in ("512", "768v", "turbo")}
    predicts = {variant: each.config.get("model.params.parameterization") for variant, each in found.items()}
    assert predicts == {"512": "eps", "768v": "v", "turbo": "eps"}
    assert {variant: each.steps for variant, each in found.items()} == {"512": None, "768v": None, "turbo": 4}


def test_the_demos_weights_are_known() -> None:
    found = detect(root() / "configs/demo/upscaler.safetensors")
    assert found.is_demo and found.config.get("degradation.gt_size") == 96


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("{", "the config in its header is damaged"),
        ('{"model": {"target": "torch.hub.load", "params": {}}}', "wants torch.hub.load built"),
        (
            '{"model": {"target": "torch.nn.Identity", "params": {"a": [{"target": "os.system"}]}}}',
            "wants os.system built",
        ),
    ],
)
def test_a_config_in_a_header_builds_nothing_but_networks(config: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        detect(sparse(tmp_path / "a.safetensors", MODULE, told={"config": config}))
