"""The smallest training run with all parts: a config, pictures for it, and a model; that model in diffusers' form."""

from pathlib import Path
from typing import Any

import skimage.data
import torch
from PIL import Image
from reference.parity import fill

from ldm.config import load_config
from ldm.exchange.export_cli import main as export
from ldm.models.build import build_model

ROOT = Path(__file__).parents[1]

TINY = f"""
base: {ROOT}/configs/demo/edge_cpu.yaml
model:
  params:
    unet_config: {{params: {{channel_mult: [1, 1], attention_resolutions: []}}}}
    structcond_stage_config: {{params: {{channel_mult: [1, 1], attention_resolutions: []}}}}
    first_stage_config: {{params: {{ckpt_path: null, ddconfig: {{ch: 32, ch_mult: [1, 1]}}}}}}
degradation: {{gt_size: 32}}
data:
  params:
    batch_size: 1
    num_workers: 0
    train: {{params: {{gt_path: pictures, crop_size: 32, gt_size: 32, queue_size: 2}}}}
    validation: {{params: {{gt_path: pictures, crop_size: 32, gt_size: 32}}}}
lightning:
  callbacks: {{image_logger: {{params: {{batch_frequency: 1000, max_images: 1}}}}}}
  trainer: {{max_steps: 2}}
"""


def write_tiny_model(folder: Path) -> dict[str, torch.Tensor]:
    """tiny.yaml and a checkpoint of its model with random weights, model.ckpt; returns its state dict."""
    (folder / "tiny.yaml").write_text(TINY)
    torch.manual_seed(0)
    state: dict[str, torch.Tensor] = build_model(load_config([folder / "tiny.yaml"])).state_dict()
    torch.save({"state_dict": state}, folder / "model.ckpt")
    return state


def export_tiny_diffusers(folder: Path) -> tuple[Path, Any]:
    """A whole tiny model in diffusers' form, in a folder below `folder`, and the model; no weight of it is zero."""
    text = "cond_stage_config: {params: {arch: {width: 16, layers: 2, heads: 2}}}"
    (folder / "tiny.yaml").write_text(TINY.replace("    first_stage_config", f"    {text}\n    first_stage_config"))
    model = build_model(load_config([folder / "tiny.yaml"])).eval()
    fill(model)  # for what is initialised with zeros would hide differences
    torch.save(model.state_dict(), folder / "model.ckpt")
    words = ["--format", "diffusers", "--dtype", "fp32", "--base", str(folder / "tiny.yaml")]
    if export([str(folder / "model.ckpt"), str(folder / "out"), *words]) != 0:
        raise RuntimeError("the export failed")
    return folder / "out", model


def write_tiny_run(folder: Path) -> None:
    """Four pictures and tiny.yaml, which names them relative to `folder`."""
    (folder / "pictures").mkdir()
    photo = Image.fromarray(skimage.data.astronaut())
    for index in range(4):
        photo.crop((64 * index, 64, 64 * index + 48, 112)).save(folder / "pictures" / f"{index}.png")
    (folder / "tiny.yaml").write_text(TINY)
