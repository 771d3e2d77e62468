"""The networks of an upscaler, from a config and its checkpoints, where and in the precision that they are to run."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from basicsr.utils.errors import FieldError, UserError
from basicsr.utils.files import digest
from ldm import shipped
from ldm.config import Config, load_config
from ldm.inference.precision import chosen_precision
from ldm.inference.settings import PRECISIONS
from ldm.models.autoencoder import AutoencoderKLResi
from ldm.models.build import FIRST_STAGE, build_model
from ldm.models.diffusion.checkpoint import FROZEN
from ldm.models.diffusion.ddpm import MAY_BE_NEW, LatentDiffusionSRTextWT
from ldm.models.formats.reading import Source, config_value, named, read_state_dict
from ldm.modules.diffusionmodules.blocks import Downsample
from ldm.util import get_obj_from_str

DTYPES = dict(zip(PRECISIONS, (torch.float32, torch.bfloat16, torch.float16), strict=True))


def demo_files() -> tuple[Path, Path]:
    """The config and the checkpoint of the small demo weights, which come with this project."""
    return shipped.root() / "configs/demo/upscaler.yaml", shipped.root() / "configs/demo/upscaler.safetensors"


@dataclass(frozen=True)
class Networks:
    """A loaded model. The text tower stays on the CPU, for it is needed once per prompt.

    The autoencoders are always in float32: eight bits of mantissa would show as bands.
    """

    model: LatentDiffusionSRTextWT
    cfw: AutoencoderKLResi | None
    frame: int  # side of the pictures that the model was trained on, pixels
    device: torch.device
    config: Config | None = None  # that they were built from

    @property
    def precision(self) -> str:
        """Of the U-Net and the time-aware encoder."""
        dtype = next(self.model.model.parameters()).dtype
        return next(name for name, each in DTYPES.items() if each == dtype)

    @property
    def downsampling(self) -> int:
        """Pixels per latent cell, f."""
        factor: int = self.model.first_stage_model.config.downsampling
        return factor

    @property
    def multiple(self) -> int:
        """What the sides of a picture must be multiples of, pixels: f, doubled at each level of the U-Net."""
        unet: nn.Module = self.model.model.diffusion_model
        halvings = sum(isinstance(module, Downsample) for module in unet.modules())
        return self.downsampling * int(2**halvings)

    @cached_property
    def identity(self) -> str:
        """Of the weights: every tensor's sum, in short."""
        parts = [self.model, *([] if self.cfw is None else [self.cfw])]
        sums = torch.stack([weights.sum(dtype=torch.float64).cpu() for part in parts for weights in part.parameters()])
        # Rounded, for the order of summing depends on the number of threads.
        return digest(sums.float().numpy().tobytes())

    @classmethod
    def load(
        cls,
        config: str | Path | Config,
        ckpt: Source,
        cfw_ckpt: str | Path | None = None,
        device: str = "auto",
        precision: str = "fp32",
    ) -> "Networks":
        """Build what the config, or the file of one, describes and load the checkpoints into it.

        cfw_ckpt: a second-stage autoencoder, or the layers of CFW alone, which then join the checkpoint's autoencoder.

        Raises:
            UserError: a config that is not one of StableSR's, or a checkpoint that does not fit it or lacks what
                StableSR added to Stable Diffusion.
            FieldError: a device that is not there, or an unknown precision.
        """
        where = chosen_device(device)
        dtype = DTYPES[chosen_precision(precision, where)]
        if not isinstance(config, Config):
            config = load_config([config], ["model.params.edge_loss_weight=0"])  # nothing is trained here
        model = _model(config, ckpt).eval().requires_grad_(requires_grad=False)
        cfw = None
        if cfw_ckpt is not None:
            cfw = _cfw(config, ckpt, cfw_ckpt).eval().requires_grad_(requires_grad=False).to(where)
        networks: tuple[nn.Module, ...] = (model.model, model.structcond_stage_model)
        for network in networks:
            # Channels last: the layout that convolutions are fastest in, on both kinds of device.
            network.to(device=where, dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's overloads lack this combination
        model.first_stage_model.to(where)
        frame = config.get("degradation.gt_size") or model.first_stage_model.config.resolution
        return cls(model, cfw, frame, where, config)


def chosen_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one. Raises FieldError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise FieldError("device", f"{name} is not there; use auto, cpu, or cuda on a machine with a GPU") from error
    return device


def _model(config: Config, ckpt: Source) -> LatentDiffusionSRTextWT:
    target = config.get("model.target")
    if target is None:
        raise UserError(
            f"{config.place(())} has no `model:` with a `target:` and `params:`; give the config that was trained with"
        )
    kind = get_obj_from_str(str(target))
    if not (isinstance(kind, type) and issubclass(kind, LatentDiffusionSRTextWT)):
        raise UserError(
            f"{config.place(('model', 'target'))}: model.target is {target}; upscaling needs LatentDiffusionSRTextWT"
        )
    keys, added = read_state_dict(ckpt, values=False).keys(), dict[str, Callable[[str], bool]](MAY_BE_NEW)
    for name in ("SPADE", "structure"):
        if not any(added[name](key) for key in keys):
            raise UserError(
                f"{named(ckpt)} holds no {name} weights: it is not a checkpoint of StableSR; give one, such as "
                "stablesr_000117.ckpt or a run's checkpoints/last.ckpt"
            )
    module = all(".spade." in key for key in keys if key.startswith("model.diffusion_model."))
    if module and FROZEN not in keys:  # a run's own checkpoint names the files that have the rest
        raise FieldError(
            "sd", f"is not given, and {named(ckpt)} holds nothing but what StableSR adds to Stable Diffusion: give both"
        )
    built: LatentDiffusionSRTextWT = build_model(config, ckpt=ckpt)
    return built


def _cfw(config: Config, ckpt: Source, cfw_ckpt: str | Path) -> AutoencoderKLResi:
    params = config.get("model.params.first_stage_config.params", {})
    files = [str(cfw_ckpt)]
    if all("fusion_layer" in key for key in read_state_dict(cfw_ckpt, values=False)):
        # CFW is trained with the autoencoder of stage 1 as it is.
        inside = any(key.startswith(FIRST_STAGE) for key in read_state_dict(ckpt, values=False))
        first_stage = config_value(ckpt) if inside else params.get("ckpt_path")
        files = [*([first_stage] if isinstance(first_stage, str) else first_stage or []), *files]
    return AutoencoderKLResi(
        params.get("ddconfig", {}), {"target": "torch.nn.Identity"}, params.get("embed_dim", 4), ckpt_path=files
    )
