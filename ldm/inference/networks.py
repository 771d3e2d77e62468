"""The networks of an upscaler, from a config and its checkpoints, where and in the precision that they are to run."""

from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import nn

from basicsr.utils import checks
from basicsr.utils.errors import UserError
from ldm import shipped
from ldm.config import Config, load_config
from ldm.models.autoencoder import AutoencoderKLResi
from ldm.models.build import build_model
from ldm.models.diffusion.checkpoint import read_state_dict
from ldm.models.diffusion.ddpm import MAY_BE_NEW, LatentDiffusionSRTextWT
from ldm.modules.diffusionmodules.blocks import Downsample
from ldm.util import get_obj_from_str

DEMO_CONFIG = shipped.root() / "configs/demo/upscaler.yaml"
DEMO_WEIGHTS = shipped.root() / "configs/demo/upscaler.safetensors"
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Networks:
    """A loaded model. The text tower stays on the CPU, for it is needed once per prompt.

    The autoencoders are always in float32: eight bits of mantissa would show as bands.
    """

    model: LatentDiffusionSRTextWT
    cfw: AutoencoderKLResi | None
    frame: int  # side of the pictures that the model was trained on, pixels
    device: torch.device

    @property
    def downsampling(self) -> int:
        """Pixels per latent cell, f."""
        return self.model.first_stage_model.config.downsampling

    @property
    def multiple(self) -> int:
        """What the sides of a picture must be multiples of, pixels: f, doubled at each level of the U-Net."""
        unet: nn.Module = self.model.model.diffusion_model
        return self.downsampling * 2 ** sum(isinstance(module, Downsample) for module in unet.modules())

    @cached_property
    def identity(self) -> str:
        """Of the weights: every tensor's sum, in short."""
        parts = [self.model, *([] if self.cfw is None else [self.cfw])]
        sums = torch.stack([weights.sum(dtype=torch.float64).cpu() for part in parts for weights in part.parameters()])
        # Rounded, for the order of summing depends on the number of threads.
        return blake2b(sums.float().numpy().tobytes(), digest_size=16).hexdigest()

    @classmethod
    def load(
        cls,
        config_file: str | Path,
        ckpt: str | Path,
        cfw_ckpt: str | Path | None = None,
        device: str = "auto",
        precision: str = "fp32",
    ) -> "Networks":
        """Build what the config describes and load the checkpoints into it.

        Raises UserError for a config that is none of StableSR's, a checkpoint that does not fit it or lacks what
        StableSR added to Stable Diffusion, a device that is not there, or an unknown precision.
        """
        where = chosen_device(device)
        if precision not in PRECISIONS:
            raise checks.unknown("--precision", precision, PRECISIONS)
        config = load_config([config_file])
        model = _model(config, str(config_file), ckpt).eval().requires_grad_(False)
        cfw = None if cfw_ckpt is None else _cfw(config, cfw_ckpt).eval().requires_grad_(False).to(where)
        networks: tuple[nn.Module, ...] = (model.model, model.structcond_stage_model)
        for network in networks:
            # Channels last: the layout that convolutions are fastest in, on both kinds of device.
            network.to(device=where, dtype=PRECISIONS[precision], memory_format=torch.channels_last)  # type: ignore[call-overload]
        model.first_stage_model.to(where)
        frame = config.get("degradation.gt_size") or model.first_stage_model.config.resolution
        return cls(model, cfw, frame, where)


def chosen_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one. Raises UserError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name} is not there; use auto, cpu, or cuda on a machine with a GPU") from error
    return device


def _model(config: Config, file: str, ckpt: str | Path) -> LatentDiffusionSRTextWT:
    block = config.get("model")
    if not isinstance(block, dict) or not isinstance(block.get("params"), dict):
        raise UserError(f"{file} has no `model:` with a `target:` and `params:`; give the config that was trained with")
    kind = get_obj_from_str(str(block.get("target")))
    if not (isinstance(kind, type) and issubclass(kind, LatentDiffusionSRTextWT)):
        raise UserError(f"{file}: model.target is {block.get('target')}; upscaling needs LatentDiffusionSRTextWT")
    keys = read_state_dict(ckpt).keys()
    for name in ("SPADE", "structure"):
        if not any(MAY_BE_NEW[name](key) for key in keys):
            raise UserError(
                f"{ckpt} holds no {name} weights: it is no checkpoint of StableSR; give one, such as "
                "stablesr_000117.ckpt or a run's checkpoints/last.ckpt"
            )
    params: dict[str, Any] = {**block["params"], "edge_loss_weight": 0.0}
    model: LatentDiffusionSRTextWT = build_model(
        replace(config, values={**config.values, "model": {**block, "params": params}}), ckpt=ckpt
    )
    return model


def _cfw(config: Config, cfw_ckpt: str | Path) -> AutoencoderKLResi:
    params = config.get("model.params.first_stage_config.params", {})
    return AutoencoderKLResi(
        params.get("ddconfig", {}), {"target": "torch.nn.Identity"}, params.get("embed_dim", 4), ckpt_path=str(cfw_ckpt)
    )
