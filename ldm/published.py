"""What published YAMLs carry and the constructors do not: keys without effect, fixed values, flat names of a block.

A constructor that is decorated with `takes_published_keys` accepts these keys beside its own arguments, wherever it is
called; `instantiate_from_config` and `check_config` judge them before anything is built.
"""

from collections.abc import Callable, Collection, Mapping
from functools import wraps
from typing import Any, ParamSpec

from basicsr.utils.errors import FieldError

P = ParamSpec("P")

# Published target -> ours: where it lies in a package file, which is empty here, or beside a class it is built upon.
TARGETS = {
    "ldm.models.diffusion.ddpm.LatentDiffusionSRTextWTFFHQ": "ldm.models.diffusion.faces.LatentDiffusionSRTextWTFFHQ",
    "ldm.modules.losses.LPIPSWithDiscriminator": "ldm.modules.losses.perceptual.LPIPSWithDiscriminator",
}

# Of branches that the edge fork's author gave up: targets, and keys of the U-Net.
ABANDONED = (
    "ldm.models.diffusion.ddpm_with_edge.LatentDiffusionSRTextWTWithEdge",
    "ldm.modules.diffusionmodules.unet_with_edge.UNetModelDualcondV2WithEdge",
    "ldm.modules.edge_processor.EdgeProcessor",
)
ABANDONED_KEYS = ("use_edge_map", "use_edge_processing", "use_edge_fusion", "edge_input_channels", "edge_weight")
INSTEAD = "is of an abandoned branch: for edges as an input set structcond_stage_config.params.in_channels: 8 instead"

# The general model and that of faces, which takes the same keys.
_STAGE_1 = (
    "ldm.models.diffusion.ddpm.LatentDiffusionSRTextWT",
    "ldm.models.diffusion.ddpm.LatentDiffusionSRTextWTFFHQ",
    "ldm.models.diffusion.faces.LatentDiffusionSRTextWTFFHQ",
)
_UNET = "ldm.modules.diffusionmodules.openaimodel.UNetModelDualcondV2"
_STRUCTURE = "ldm.modules.diffusionmodules.openaimodel.EncoderUNetModelWT"
_VAE = "ldm.models.autoencoder.AutoencoderKL"
_CFW = "ldm.models.autoencoder.AutoencoderKLResi"
DDCONFIG = "ldm.modules.diffusionmodules.model.DDConfig"
_TEXT = "ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder"
_FACES = "basicsr.data.ffhq_degradation_dataset.FFHQDegradationDataset"

# Read by nobody, or not here: the data side looks up use_usm and random_size; precision is the trainer's matter.
IGNORED: Mapping[str, Collection[str]] = {
    **dict.fromkeys(_STAGE_1, (
        "num_timesteps_cond", "first_stage_key", "cond_stage_key", "image_size", "channels", "monitor", "log_every_t",
        "use_usm", "random_size",
    )),
    _UNET: ("image_size", "legacy", "num_heads_upsample", "use_fp16"),
    _STRUCTURE: ("image_size", "num_heads_upsample", "use_fp16"),
    _VAE: ("image_key", "monitor", "colorize_nlabels"),
    _CFW: ("image_key", "monitor", "colorize_nlabels", "use_usm"),
    _TEXT: ("version",),
    _FACES: ("component_path", "eye_enlarge_ratio"),  # of crop_components
}  # fmt: skip

_BLOCKS_OF_CONVOLUTIONS = {
    "conv_resample": True, "dims": 2, "use_scale_shift_norm": False, "resblock_updown": False,
    "use_new_attention_order": False,
}  # fmt: skip
# Options of which one value is supported.
FIXED: Mapping[str, Mapping[str, Any]] = {
    **dict.fromkeys(
        _STAGE_1, {"conditioning_key": "crossattn", "cond_stage_trainable": False, "p2_gamma": None, "p2_k": None}
    ),
    _CFW: {"synthesis_data": False},
    _FACES: {"crop_components": False},
    DDCONFIG: {"double_z": True},
    _UNET: {**_BLOCKS_OF_CONVOLUTIONS, "use_spatial_transformer": True},
    _STRUCTURE: _BLOCKS_OF_CONVOLUTIONS,
}

_EDGE = (
    "warmup_steps", "max_timestep", "min_snr", "crop", "crop_by", "target", "operator", "dilate", "base_weight",
    "normalize", "loss_type", "grad_ratio_every", "decoder_checkpoint",
)  # fmt: skip
_COMPUTE = ("frozen_dtype", "channels_last", "compile", "fused_adamw", "tf32", "draws_per_pair", "pool")
_LOSS = ("loss_type", "l_simple_weight", "original_elbo_weight", "logvar_init", "last_step_share")
# Arguments that are blocks of options: flat name -> (block, name in it).
FOLDED: Mapping[str, Mapping[str, tuple[str, str]]] = dict.fromkeys(
    _STAGE_1,
    {
        **{f"edge_{name}": ("edge", name) for name in _EDGE},
        **{name: ("loss", name) for name in _LOSS},
        **{name: ("compute", name) for name in _COMPUTE},
    },
)
# The class that holds a block's options.
BLOCKS: Mapping[str, Mapping[str, str]] = dict.fromkeys(
    _STAGE_1,
    {
        "edge": "ldm.modules.losses.edge_options.EdgeOptions",
        "edge_condition": "ldm.models.diffusion.edge_condition.EdgeCondition",
        "compute": "ldm.models.diffusion.compute.Compute",
        "loss": "ldm.models.diffusion.training_loss.TrainingLoss",
    },
)


def translated(target: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """`params` of a published YAML as the arguments that the constructor of `target` has.

    Raises:
        FieldError: another value of a fixed option, or an option that is given both flat and in its block.
    """
    fixed, folded = FIXED.get(target, {}), FOLDED.get(target, {})
    own: dict[str, Any] = {}
    blocks: dict[str, dict[str, Any]] = {}
    for key, value in params.items():
        if target == _UNET and key in ABANDONED_KEYS:
            raise FieldError(key, INSTEAD)
        if key in fixed and value != fixed[key]:
            raise FieldError(key, f"is {value!r}, which is not supported: use {fixed[key]!r} or leave it out")
        if key in folded:
            block, name = folded[key]
            blocks.setdefault(block, {})[name] = value
        elif key not in fixed and key not in IGNORED.get(target, ()):
            own[key] = value
    for block, given in blocks.items():
        inside = own.get(block) or {}
        if not isinstance(inside, Mapping):
            raise FieldError(block, f"is {inside!r}: give a mapping of options")
        for name in given:
            if name in inside:
                flat = next(key for key, place in folded.items() if place == (block, name))
                raise FieldError(flat, f"is given twice, also as `{name}` in the block `{block}`: leave one out")
        own[block] = {**inside, **given}
    return own


def flat_names(target: str) -> set[str]:
    """Every key that the constructor of `target` accepts beside its arguments."""
    return {*IGNORED.get(target, ()), *FIXED.get(target, {}), *FOLDED.get(target, {})}


def key_of_option(target: str, block: str, name: str, params: Mapping[str, Any]) -> str:
    """What a block's option is called in `params`: `edge_crop`, or `edge.crop` in the block."""
    flat = (key for key, place in FOLDED.get(target, {}).items() if place == (block, name) and key in params)
    return next(flat, f"{block}.{name}")


def takes_published_keys(init: Callable[P, None]) -> Callable[P, None]:
    """A constructor that accepts the tables' keys too; its signature shows its own arguments alone."""
    target = f"{init.__module__}.{init.__qualname__.removesuffix('.__init__')}"

    @wraps(init)
    def accepting(*args: P.args, **params: P.kwargs) -> None:
        init(*args, **translated(target, params))

    return accepting
