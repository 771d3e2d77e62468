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
from ldm.util import get_obj_from_str, instantiate_from_config

ROOT = Path(__file__).parents[1]
SHIPPED = sorted((ROOT / "configs").rglob("*.yaml"))
BASELINE = ROOT / "configs/stableSRNew/v2-finetune_text_T_512.yaml"
EDGE = ROOT / "configs/stableSRNew/v2-finetune_text_T_512_edge_800.yaml"

# What people have on their disks: all keys that StableSR's YAMLs carry, in the forms in which they carry them.
PUBLISHED = """
sf: 4
model:
  base_learning_rate: 5.0e-05
  target: ldm.models.diffusion.ddpm.LatentDiffusionSRTextWT
  params:
    parameterization: "v"
    linear_start: 0.00085
    linear_end: 0.0120
    num_timesteps_cond: 1
    log_every_t: 200
    timesteps: 1000
    first_stage_key: image
    cond_stage_key: caption
    image_size: 512
    channels: 4
    cond_stage_trainable: False   # the text tower is frozen
    conditioning_key: crossattn
    monitor: val/loss_simple_ema
    scale_factor: 0.18215
    use_ema: False
    ckpt_path: ./v2-1_512-ema-pruned.ckpt
    unfrozen_diff: False
    random_size: False
    time_replace: 1000
    use_usm: True
    p2_gamma: ~
    p2_k: ~
    ignore_keys: []
    unet_config:
      target: ldm.modules.diffusionmodules.openaimodel.UNetModelDualcondV2
      params: {image_size: 32, in_channels: 4, out_channels: 4, model_channels: 320, attention_resolutions: [4, 2, 1],
        num_res_blocks: 2, channel_mult: [1, 2, 4, 4], num_head_channels: 64, use_spatial_transformer: True,
        use_linear_in_transformer: True, transformer_depth: 1, context_dim: 1024, use_checkpoint: False, legacy: False,
        semb_channels: 256}
    first_stage_config:
      target: ldm.models.autoencoder.AutoencoderKL
      params:
        ckpt_path: ~
        embed_dim: 4
        monitor: val/rec_loss
        ddconfig: {double_z: true, z_channels: 4, resolution: 512, in_channels: 3, out_ch: 3, ch: 128,
          ch_mult: [1, 2, 4, 4], num_res_blocks: 2, attn_resolutions: [], dropout: 0.0}
        lossconfig:
          target: torch.nn.Identity
    cond_stage_config:
      target: ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder
      params: {freeze: True, layer: penultimate}
    structcond_stage_config:
      target: ldm.modules.diffusionmodules.openaimodel.EncoderUNetModelWT
      params: {image_size: 96, in_channels: 4, model_channels: 256, out_channels: 256, num_res_blocks: 2,
        attention_resolutions: [4, 2, 1], dropout: 0, channel_mult: [1, 1, 2, 2], conv_resample: True, dims: 2,
        use_checkpoint: False, use_fp16: False, num_heads: 4, num_head_channels: -1, num_heads_upsample: -1,
        use_scale_shift_norm: False, resblock_updown: False, use_new_attention_order: False}
degradation:
  resize_prob: [0.2, 0.7, 0.1]
  resize_range: [0.3, 1.5]
  gaussian_noise_prob: 0.5
  noise_range: [1, 15]
  poisson_scale_range: [0.05, 2.0]
  gray_noise_prob: 0.4
  jpeg_range: [60, 95]
  second_blur_prob: 0.5
  resize_prob2: [0.3, 0.4, 0.3]
  resize_range2: [0.6, 1.2]
  gaussian_noise_prob2: 0.5
  noise_range2: [1, 12]
  poisson_scale_range2: [0.05, 1.0]
  gray_noise_prob2: 0.4
  jpeg_range2: [60, 100]
  gt_size: 512
  no_degradation_prob: 0.01
data:
  target: main.DataModuleFromConfig
  params:
    batch_size: 6
    num_workers: 6
    wrap: false
    train:
      target: basicsr.data.realesrgan_dataset.RealESRGANDataset
      params: &pictures
        queue_size: 180
        gt_path: ["./DF2K", "./DIV8K", "./OST"]
        face_gt_path: ./FFHQ
        num_face: 10000
        crop_size: 512
        io_backend:
          type: disk
        blur_kernel_size: 21
        kernel_list: ['iso', 'aniso', 'generalized_iso', 'generalized_aniso', 'plateau_iso', 'plateau_aniso']
        kernel_prob: [0.45, 0.25, 0.12, 0.03, 0.12, 0.03]
        sinc_prob: 0.1
        blur_sigma: [0.2, 1.5]
        betag_range: [0.5, 2.0]
        betap_range: [1, 1.5]
        blur_kernel_size2: 11
        kernel_list2: ['iso', 'aniso', 'generalized_iso', 'generalized_aniso', 'plateau_iso', 'plateau_aniso']
        kernel_prob2: [0.45, 0.25, 0.12, 0.03, 0.12, 0.03]
        sinc_prob2: 0.1
        blur_sigma2: [0.2, 1.0]
        betag_range2: [0.5, 2.0]
        betap_range2: [1, 1.5]
        final_sinc_prob: 0.8
        gt_size: 512
        use_hflip: True
        use_rot: False
        image_type: png
    validation:
      target: basicsr.data.realesrgan_dataset.RealESRGANDataset
      params: *pictures
test_data:
  target: main.DataModuleFromConfig
  params:
    batch_size: 6
    num_workers: 6
    wrap: false
    test:
      target: basicsr.data.realesrgan_dataset.RealESRGANDataset
      params: *pictures
lightning:
  modelcheckpoint:
    params:
      every_n_train_steps: 1500
  callbacks:
    image_logger:
      target: main.ImageLogger
      params: {batch_frequency: 1500, max_images: 4, increase_log_steps: False}
  trainer:
    benchmark: True
    max_steps: 800000
    accumulate_grad_batches: 4
"""
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
        return config.get("data.params.batch_size") * config.get("lightning.trainer.accumulate_grad_batches")

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
    assert isinstance(callback, pl.Callback)
    assert callback.batch_frequency == 1500
