"""Stable Diffusion 2 as diffusers lays it out: a folder with unet/, vae/ and text_encoder/, in files or in shards.

Beside them `stablesr/` may hold what StableSR adds, under our own names.
"""

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from basicsr.utils.errors import UserError, first_line
from ldm.models.formats import diffusers_keys as keys
from ldm.models.formats.diffusers_keys import StateDict

# What each folder holds: its prefix in our state dict, and the way from its keys to ours.
PARTS: Mapping[str, tuple[str, Callable[[StateDict], StateDict]]] = {
    "unet": ("model.diffusion_model.", keys.unet_to_ours),
    "vae": ("first_stage_model.", keys.vae_to_ours),
    "text_encoder": ("cond_stage_model.model.", keys.text_to_ours),
}
ADDED = "stablesr"
# What the keys of a part begin with where it is a file of its own.
SIGNS = {"vae": "encoder.down_blocks.", "unet": "down_blocks.", "text_encoder": "text_model."}
# In the order in which they are looked for: full precision and the format that runs no code come first.
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
VARIANTS = ("", ".fp16")
SUFFIXES = ("safetensors", "bin")


def weights_in(names: Collection[str], folder: str = "") -> tuple[str, bool] | None:
    """Which of a folder's files to read: its name, and whether it is an index of shards; None where there is none.

    `names` may be of more than the folder, which `folder` then is, with its slash at the end.
    """
    for suffix in SUFFIXES:
        for variant in VARIANTS:
            for stem in STEMS:
                if (file := f"{folder}{stem}{variant}.{suffix}") in names:
                    return file, False
                # diffusers has put the variant in three places.
                for end in (f"{variant}.{suffix}.index", f".{suffix}.index{variant}", f".{suffix}{variant}.index"):
                    if (file := f"{folder}{stem}{end}.json") in names:
                        return file, True
    return None


def holds_weights(path: Path) -> bool:
    """Whether `path` is a folder in diffusers' layout: of a pipeline, or of one network."""
    return path.is_dir() and bool(_parts_in(path) or weights_in(_names(path)))


def read_folder(path: Path, read_file: Callable[[Path], StateDict]) -> StateDict:
    """All tensors of the folder under our names; `read_file` reads one weights file, and runs no code.

    Raises:
        UserError: a part that the folder has a place for has no weights there, or an index that names a missing shard.
    """
    parts = _parts_in(path)
    if not parts:
        return in_our_names(path, _read_weights(path, read_file))
    state: StateDict = {}
    for part in parts:
        state |= _translated(path / part, part, _read_weights(path / part, read_file))
    return state | (_read_weights(path / ADDED, read_file) if (path / ADDED).is_dir() else {})


def in_our_names(path: Path, state: StateDict) -> StateDict:
    """The state dict of one file; where it is that of a network in diffusers' names, as the part of a model that it is.

    Raises:
        UserError: a part of a network in diffusers' names is incomplete.
    """
    part = next((part for part, sign in SIGNS.items() if any(key.startswith(sign) for key in state)), None)
    return _translated(path, part, state) if part else state


def lacking(state: Collection[str]) -> list[str]:
    """The parts of Stable Diffusion of which there is no key, by their names in diffusers' layout."""
    return [part for part, (prefix, _) in PARTS.items() if not any(key.startswith(prefix) for key in state)]


def _translated(path: Path, part: str, state: StateDict) -> StateDict:
    prefix, to_ours = PARTS[part]
    try:
        return {prefix + key: value for key, value in to_ours(state).items()}
    except KeyError as error:
        raise UserError(f"{path}: {part} is incomplete: it has no {error.args[0]}") from error


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.is_file()]


def _parts_in(path: Path) -> list[str]:
    return [part for part in PARTS if (path / part).is_dir()]


def _read_weights(folder: Path, read_file: Callable[[Path], StateDict]) -> StateDict:
    """The tensors of the one file, or of the shards that an index lists."""
    found = weights_in(_names(folder))
    if found is None:
        raise UserError(
            f"{folder} holds no weights: {STEMS[0]}.safetensors or another of diffusers' file names is expected there"
        )
    name, is_index = found
    state: StateDict = {}
    for file in _shards(folder / name) if is_index else [folder / name]:
        state |= read_file(file)
    return state


def _shards(index: Path) -> list[Path]:
    shards = [index.parent / name for name in shard_names(index)]
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise UserError(f"{index.parent} lacks {len(missing)} of {len(shards)} shards: {', '.join(missing[:3])}")
    return shards


def shard_names(index: Path) -> list[str]:
    """The files that an index lists, which lie beside it. Raises UserError for what is no index."""
    try:
        names = set(json.loads(index.read_text())["weight_map"].values())
        # An index is somebody's file: a name in it may not lead out of its folder.
        return sorted(Path(name).name for name in names)
    except (ValueError, KeyError, AttributeError, TypeError, OSError) as error:
        raise UserError(f"{index} is not an index of shards: {first_line(error)}") from error
