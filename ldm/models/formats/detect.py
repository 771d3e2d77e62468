"""Which config a checkpoint belongs to: what the file says of itself, its run's folder, or its keys and shapes."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from basicsr.utils.errors import FieldError, UserError
from ldm import shipped
from ldm.config import Config, load_config
from ldm.models.formats.diffusers_folder import ADDED
from ldm.models.formats.reading import Source, named, places, read_state_dict
from ldm.util import instantiate_from_config

Shapes = Mapping[str, tuple[int, ...]]

# Published models that have the same keys and shapes, by the config of each.
VARIANTS = {
    "512": "stableSRNew/v2-finetune_text_T_512.yaml",
    "768v": "stableSRNew/v2-finetune_text_T_768v.yaml",
    "turbo": "stableSRNew/v2-finetune_text_T_512.yaml",  # 512's, trained for four steps of sampling
}
DEMO = "demo/upscaler.yaml"
# The parts of a stage-1 model: the prefix of each part's keys, and its block in the config.
PARTS = {
    "model.diffusion_model.": "unet_config",
    "structcond_stage_model.": "structcond_stage_config",
    "first_stage_model.": "first_stage_config",
    "cond_stage_model.": "cond_stage_config",
}
STRUCTURE_INPUT = "structcond_stage_model.input_blocks.0.0.weight"
WITH_EDGES = "model.params.structcond_stage_config.params.in_channels=8"
# All that a file may name to be built: it may come from anywhere.
TARGETS = frozenset(
    {
        "ldm.models.diffusion.ddpm.LatentDiffusionSRTextWT",
        "ldm.models.diffusion.ddpm.LatentDiffusionSRTextWTFFHQ",
        "ldm.models.diffusion.faces.LatentDiffusionSRTextWTFFHQ",
        "ldm.modules.diffusionmodules.openaimodel.UNetModelDualcondV2",
        "ldm.modules.diffusionmodules.openaimodel.EncoderUNetModelWT",
        "ldm.models.autoencoder.AutoencoderKL",
        "ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder",
        "torch.nn.Identity",
    }
)


@dataclass(frozen=True)
class Detected:
    """A config for a checkpoint, without its edge loss, and how it was found; steps: of sampling, where they matter."""

    config: Config
    how: str
    steps: int | None = None
    is_demo: bool = False


def detect(source: Source, variant: str | None = None) -> Detected:
    """The config of a stage-1 checkpoint, or of a module with StableSR's additions.

    variant: which of `VARIANTS` it is, where the file does not say so itself.

    Raises:
        FieldError: `variant` is unknown, or is needed and not given.
        UserError: nothing that is shipped has these shapes.
    """
    if variant is not None and variant not in VARIANTS:
        raise FieldError("variant", f"is {variant!r}: use {', '.join(VARIANTS)}")
    steps = 4 if variant == "turbo" else None
    for path in places(source) if variant is None else []:
        if (config := own_config(path)) is not None:
            return Detected(config, f"the config that {path.name} holds", config.get("sampling_steps"))
        if (file := config_of_run(path)) is not None:
            return Detected(_without_edge_loss(file), f"the config of its run, {file}")
    shapes = {key: tuple(value.shape) for key, value in read_state_dict(source, values=False).items()}
    found = matching(shapes)
    if found == DEMO:
        return Detected(_without_edge_loss(DEMO), "the shapes of the demo's weights", is_demo=True)
    if found is None:
        raise UserError(f"{named(source)} has the shapes of none of the shipped configs: give its own config too")
    if variant is None:
        raise FieldError(
            "variant",
            f"is not given, and {named(source)} has the keys and shapes that StableSR's models for 512 pixels, for 768 "
            f"(v-prediction) and for four steps (turbo) have in common: say which it is, {', '.join(VARIANTS)}",
        )
    config = _without_edge_loss(VARIANTS[variant], *([WITH_EDGES] if sees_edges(shapes) else []))
    return Detected(config, f"the shapes of StableSR, {variant}", steps)


def matching(shapes: Shapes) -> str | None:
    """The first shipped config with which a model's shapes agree; None where none does, or it is no model of ours."""
    for name in (VARIANTS["512"], DEMO):
        expected = expected_shapes(name, edges=sees_edges(shapes))
        known = [key for key in shapes if key in expected and key.startswith(tuple(PARTS))]
        if known and all(_same(shapes[key], expected[key]) for key in known):
            return name
    return None


def _same(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Equal but for axes of length 1 at the end, as those of 1 x 1 convolutions."""
    longer, shorter = sorted((one, other), key=len, reverse=True)
    return longer[: len(shorter)] == shorter and all(side == 1 for side in longer[len(shorter) :])


def sees_edges(shapes: Shapes) -> bool:
    """Whether the time-aware encoder takes a latent of edges beside that of the picture."""
    return shapes.get(STRUCTURE_INPUT, (0, 0))[1] == 8


@cache
def expected_shapes(config: str, *, edges: bool = False) -> Shapes:
    """Every key that a shipped config's networks have, built on the meta device, where they take no memory."""
    return shapes_of(load_config([config], [WITH_EDGES] if edges else []))


def shapes_of(config: Config) -> Shapes:
    """Every key of the networks that a config describes, with its shape."""
    shapes: dict[str, tuple[int, ...]] = {}
    for prefix, block in PARTS.items():
        part = config.get(f"model.params.{block}", {})
        params = {key: value for key, value in (part.get("params") or {}).items() if key != "ckpt_path"}
        with torch.device("meta"):
            network = instantiate_from_config({**part, "params": params})
        shapes |= {prefix + key: tuple(value.shape) for key, value in network.state_dict().items()}
    return shapes


def header(path: Path) -> dict[str, str]:
    """What the header of a safetensors file, or of a folder's that this project wrote, says beside keys and shapes."""
    files = [path] if path.is_file() else [path / "model.safetensors", path / ADDED / "model.safetensors"]
    for file in files:
        if file.is_file():
            try:
                with safe_open(file, "pt") as opened:
                    return dict(opened.metadata() or {})
            except (SafetensorError, OSError):  # a file of another kind has no such header
                return {}
    return {}


def own_config(path: Path) -> Config | None:
    """The config in a file's header.

    Raises:
        UserError: it is damaged, or names something to build that is none of a model's networks.
    """
    text = header(path).get("config")
    if text is None:
        return None
    try:
        values = json.loads(text)
        targets = set(_targets(values["model"]))
        kept = {key: values[key] for key in ("model", "degradation", "sf", "sampling_steps") if key in values}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: the config in its header is damaged: give its config yourself") from error
    if foreign := sorted(map(str, targets - TARGETS)):
        raise UserError(f"{path}: the config in its header wants {foreign[0]} built, which is no network of a model")
    return Config(_with_shipped_weights(kept), {("model",): str(path)})


def config_of_run(path: Path) -> Path | None:
    """The newest config of the training run in whose folder a checkpoint lies."""
    run = path.resolve().parent.parent
    configs = sorted((run / "configs").glob("*-config.yaml")) if path.parent.name == "checkpoints" else []
    return configs[-1] if configs else None


def _without_edge_loss(config: str | Path, *words: str) -> Config:
    """Nothing is trained with it."""
    return load_config([config], ["model.params.edge_loss_weight=0", *words])


def _targets(node: Any) -> Iterator[Any]:
    if isinstance(node, Mapping):
        yield from (node[key] for key in node if key == "target")
        for value in node.values():
            yield from _targets(value)
    elif isinstance(node, list):
        for value in node:
            yield from _targets(value)


def _with_shipped_weights(node: Any) -> Any:
    """The config with no path in it but those of weights that come with this project."""
    if not isinstance(node, Mapping):
        return node
    return {
        key: _shipped_only(value) if key == "ckpt_path" else _with_shipped_weights(value) for key, value in node.items()
    }


def _shipped_only(path: Any) -> str | None:
    inside = isinstance(path, str) and path.startswith(f"{shipped.CONFIGS}/") and ".." not in path
    return str(shipped.root() / path) if inside else None
