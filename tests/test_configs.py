"""The shipped YAMLs and a published StableSR one: every target resolves, every key fits, and tiny versions build."""

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import yaml
from PIL import Image
from pytorch_lightning.callbacks import ModelCheckpoint

from basicsr.data.degradation_pipeline import DegradationConfig
from basicsr.utils.errors import UserError
from ldm.config import Config, check_config, check_paths, load_config
from ldm.published import translated
from ldm.training.callbacks.image_logger import ImageLogger
from ldm.util import get_obj_from_str, instantiate_from_config

ROOT = Path(__file__).parents[1]
# A study (`arms:`) is no config: test_edge_experiment.py walks those.
SHIPPED = [file for file in sorted((ROOT / "configs").rglob("*.yaml")) if "\narms:" not in file.read_text()]
BASELINE = ROOT / "configs/stableSRNew/v2-finetune_text_T_512.yaml"
EDGE = ROOT / "configs/stableSRNew/v2-finetune_text_T_512_edge_800.yaml"

# What people have on their disks: all keys that StableSR's YAMLs carry, in the forms in which they carry them.
PUBLISHED = (ROOT / "tests/published/v2-finetune_text_T_768v.yaml").read_text()
# Widths for a test, as a user would override them: the text tower's width is the U-Net's context_dim.
TINY = [
    "model.params.ckpt_path=null",
    "model.params.unet_config.params.model_channels=32",
    "model.params.unet_config.params.channel_mult=[1,2]",
    "model.params.unet_config.params.num_head_channels=32",
    "model.params.unet_config.params.context_dim=64",
    "model.params.unet_config.params.semb_channels=32",
    "model.params.structcond_stage_config.params.model_channels=32",
    "model.params.structcond_stage_config.params.out_channels=32",
    "model.params.structcond_stage_config.params.channel_mult=[1,2]",
    "model.params.first_stage_config.params.ddconfig.ch=32",
    "model.params.first_stage_config.params.ddconfig.ch_mult=[1,1,1,1]",
    "model.params.cond_stage_config.params.arch={width: 64, layers: 2, heads: 4}",
]


def check(config: Config) -> None:
    check_config(config, trainer=pl.Trainer, modelcheckpoint=ModelCheckpoint)


def flat(node: Any, path: str = "") -> dict[str, Any]:
    """Every leaf of nested mappings by its dotted key; lists are leaves."""
    if not isinstance(node, Mapping):
        return {path: node}
    leaves = (flat(value, f"{path}.{name}".lstrip(".")) for name, value in node.items())
    return {key: leaf for some in leaves for key, leaf in some.items()}


def targets(node: Any) -> Iterator[Mapping[str, Any]]:
    """Every mapping with a `target:`."""
    if isinstance(node, Mapping):
        if "target" in node:
            yield node
        for value in node.values():
            yield from targets(value)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with two pictures."""
    for index, colour in enumerate(("red", "teal")):
        Image.new("RGB", (80, 72), colour).save(tmp_path / f"{index}.png")
    return tmp_path


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: str(file.relative_to(ROOT / "configs")))
def test_a_shipped_config_fits_the_code(file: Path) -> None:
    config = load_config([file])
    if "model" in config.values:  # some are layers for others alone
        check(config)
    for node in targets(config.values):
        inspect.signature(get_obj_from_str(node["target"])).bind(**translated(node["target"], node.get("params") or {}))
    if "degradation" in config.values:  # pairs that are ready-made need none
        DegradationConfig.from_mapping(config.values["degradation"], sf=config.values["sf"])
    inspect.signature(pl.Trainer).bind(**config.get("lightning.trainer", {}))
    inspect.signature(ModelCheckpoint).bind(**config.get("lightning.modelcheckpoint.params", {}))


def test_all_configs_are_walked() -> None:
    assert {BASELINE, EDGE, ROOT / "configs/demo/edge_cpu.yaml"} <= set(SHIPPED)


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("model.params.edge_loss_wieght=0.1", "edge_loss_weight"),
        ("model.params.unet_config.params.model_chanels=320", "model_channels"),
        ("model.params.edge_loss_weight=much", "edge_loss_weight"),
        ("data.params.train.params.gt_pth=/data", "gt_path"),
        ("lightning.trainer.max_step=1", "max_steps"),
        ("model.params.unet_config.target=ldm.modules.diffusionmodules.openaimodel.UNetModelDualcondV3", "V2"),
    ],
)
def test_a_mistyped_key_is_named(word: str, hint: str) -> None:
    with pytest.raises(UserError, match=hint):
        check(load_config([EDGE], [word]))


def test_the_edge_config_is_the_baseline_and_a_few_lines() -> None:
    baseline, edge = flat(load_config([BASELINE]).values), flat(load_config([EDGE]).values)
    own = yaml.safe_load(EDGE.read_text())
    assert own.pop("base") == BASELINE.name
    assert edge == baseline | flat(own)
    assert len(flat(own)) <= 12
    assert "model.params.edge_loss_weight" not in baseline
    assert edge["model.params.edge_loss_weight"] == 0.1
    assert edge["lightning.trainer.max_steps"] == 800000


def test_the_edge_config_takes_as_many_pictures_per_step() -> None:
    def pictures_per_step(config: Config) -> int:
        return int(config.get("data.params.batch_size") * config.get("lightning.trainer.accumulate_grad_batches"))

    assert pictures_per_step(load_config([EDGE])) == pictures_per_step(load_config([BASELINE]))


def published(tmp_path: Path, *overrides: str) -> Config:
    file = tmp_path / "theirs.yaml"
    file.write_text(PUBLISHED)
    return load_config([file], overrides)


def test_a_published_config_is_accepted_as_it_is(tmp_path: Path) -> None:
    config = published(tmp_path)
    check(config)
    assert config.values["model"]["params"]["p2_gamma"] is None
    assert config.values["test_data"]["params"]["test"]["params"]["io_backend"] == {"type": "disk"}
    with pytest.raises(UserError) as missing:
        check_paths(config)
    # ckpt_path, and for training and validation three folders and one of faces: a line each.
    assert len(str(missing.value).splitlines()) == 1 + 2 * (3 + 1)


def test_a_published_model_builds(tmp_path: Path) -> None:
    config = published(tmp_path, *TINY)
    check(config)
    model = instantiate_from_config({key: config.values["model"][key] for key in ("target", "params")})
    assert model.parameterization == "v"
    assert model.edge_loss_weight == 0
    assert model.model.diffusion_model.out[2].weight.shape == (4, 32, 3, 3)
    trained = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {"model", "structcond_stage_model"}


@pytest.mark.parametrize("block", ["data", "test_data"])
def test_published_data_build(block: str, pictures: Path) -> None:
    config = published(pictures, "degradation.gt_size=64", f"{block}.params.num_workers=0")
    params = config.values[block]["params"]
    for role in {"train", "validation", "test"} & set(params):
        faces = {"face_gt_path": str(pictures), "num_face": 1}
        params[role]["params"] |= {"gt_path": [str(pictures)] * 2, "crop_size": 64, "gt_size": 64, **faces}
    data = instantiate_from_config(
        config.values[block], degradation=config.values["degradation"], sf=4, use_usm=True, queue_size=180
    )
    data.setup()
    assert set(data.datasets) == ({"validation"} if block == "test_data" else {"train", "validation"})
    for dataset in data.datasets.values():
        assert len(dataset) == 5  # two folders of two, and one face
        assert dataset[4]["gt"].shape == (3, 64, 64)


def test_a_published_callback_builds(tmp_path: Path) -> None:
    callback = instantiate_from_config(published(tmp_path).values["lightning"]["callbacks"]["image_logger"])
    assert isinstance(callback, ImageLogger)
    assert callback.batch_frequency == 1500
