"""Stable Diffusion 2 as diffusers lays it out: a folder with unet/, vae/ and text_encoder/, in files or in shards."""

import json
from collections.abc import Callable
from pathlib import Path

from basicsr.utils.errors import UserError, first_line
from ldm.models.formats import diffusers_keys as keys
from ldm.models.formats.diffusers_keys import StateDict

# What each folder holds: its prefix in our state dict, and the way from its keys to ours.
PARTS: dict[str, tuple[str, Callable[[StateDict], StateDict]]] = {
    "unet": ("model.diffusion_model.", keys.unet_to_ours),
    "vae": ("first_stage_model.", keys.vae_to_ours),
    "text_encoder": ("cond_stage_model.model.", keys.text_to_ours),
}
# In the order in which they are looked for: full precision and the format that runs no code come first.
WEIGHTS = [
    f"{stem}{variant}.{suffix}"
    for suffix in ("safetensors", "bin")
    for variant in ("", ".fp16")
    for stem in ("diffusion_pytorch_model", "model", "pytorch_model")
]


def is_diffusers_folder(path: Path) -> bool:
    """Whether `path` is a folder in diffusers' layout: a whole pipeline, or an autoencoder alone."""
    return path.is_dir() and bool(_parts_in(path))


def read_diffusers_folder(path: Path, read_file: Callable[[Path], StateDict]) -> StateDict:
    """All tensors of the folder under our names; `read_file` reads one weights file, and runs no code.

    A folder that holds an autoencoder alone (`config.json` with its class beside the weights) gives that part.

    Raises:
        UserError: a part that the folder has a place for has no weights there, or an index that names a missing shard.
    """
    state: StateDict = {}
    for folder, part in _parts_in(path):
        prefix, to_ours = PARTS[part]
        tensors: StateDict = {}
        for file in _weight_files(folder):
            tensors |= read_file(file)
        state |= {prefix + key: value for key, value in to_ours(tensors).items()}
    return state


def lacking(state: StateDict) -> list[str]:
    """The parts of Stable Diffusion that a state dict has nothing of, by their names in diffusers' layout."""
    return [part for part, (prefix, _) in PARTS.items() if not any(key.startswith(prefix) for key in state)]


def _parts_in(path: Path) -> list[tuple[Path, str]]:
    """The folders of weights, each with the part that it is."""
    if found := [(path / part, part) for part in PARTS if (path / part).is_dir()]:
        return found
    config = path / "config.json"
    try:
        names_vae = config.is_file() and json.loads(config.read_text()).get("_class_name") == "AutoencoderKL"
    except (ValueError, AttributeError, OSError):
        names_vae = False
    return [(path, "vae")] if names_vae else []


def _weight_files(folder: Path) -> list[Path]:
    """The files that hold a part's weights: one, or the shards that an index lists."""
    for name in WEIGHTS:
        if (folder / name).is_file():
            return [folder / name]
        if (index := folder / f"{name}.index.json").is_file():
            return _shards(index)
    raise UserError(f"{folder} holds no weights: {WEIGHTS[0]} or another of diffusers' file names is expected there")


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        # An index is somebody's file: a name in it may not lead out of its folder.
        shards = [index.parent / Path(name).name for name in names]
    except (ValueError, KeyError, AttributeError, TypeError, OSError) as error:
        raise UserError(f"{index} is not an index of shards: {first_line(error)}") from error
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise UserError(f"{index.parent} lacks {len(missing)} of {len(shards)} shards: {', '.join(missing[:3])}")
    return shards
