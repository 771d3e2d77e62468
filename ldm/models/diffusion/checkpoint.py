"""Checkpoints: read safely, unwrap, filter, load, and report what happened."""

import logging
import os
import pickle
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from basicsr.utils.errors import UserError

log = logging.getLogger(__name__)

StateDict = dict[str, Tensor]


class _Inert:
    """Stands in for every class a checkpoint names that is not a tensor's: it takes anything and does nothing."""

    def __new__(cls, *_args: object) -> "_Inert":
        return super().__new__(cls)

    def __setstate__(self, _state: object) -> None:
        """Drop the pickled attributes."""


def read_state_dict(path: str | Path) -> StateDict:
    """The tensors of a Lightning `.ckpt`, a bare state dict or a `.safetensors` file, on the CPU, memory-mapped.

    Nothing in the file can run code: pickles are read with `weights_only=True`, and classes that old Lightning versions
    left in checkpoints (callbacks, config objects) are replaced by inert placeholders, which is logged.

    Raises UserError where the file is missing, truncated, or holds no tensors.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        where = "it is a folder" if path.is_dir() else "check the path"
        raise UserError(f'no checkpoint at {path}: {where} (README, "Checkpoints", says where to get the files)')
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _read_pickle(path)
    except Exception as error:  # a damaged file makes the readers raise nearly anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{path} cannot be read as a checkpoint; damaged, or something else? {reason}") from error
    state = content.get("state_dict", content) if isinstance(content, Mapping) else {}
    items = state.items() if isinstance(state, Mapping) else ()
    tensors = {key: value for key, value in items if isinstance(value, Tensor)}
    if not tensors:
        raise UserError(f"{path} holds no tensors; expected a Lightning checkpoint, a state dict or a safetensors file")
    return tensors


def _read_pickle(path: Path) -> object:
    if not zipfile.is_zipfile(path):
        # The format before PyTorch 1.6: it cannot be memory-mapped or inspected, so only plain tensors are accepted.
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise ValueError("neither a PyTorch archive nor a plain pickle of tensors") from error
    unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    if unknown:
        log.info("%s names classes that are not loaded: %s", path.name, ", ".join(sorted(unknown)))
    try:
        with torch.serialization.safe_globals([(_Inert, name) for name in unknown]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        if not unknown:
            raise
        # PyTorch's own message advises to load it unsafely.
        raise ValueError(
            f"it wants code to be run, which is refused ({', '.join(sorted(unknown))}); "
            "have its state dict saved alone, best as .safetensors"
        ) from error


def take_prefix(state: StateDict, prefix: str) -> StateDict:
    """The part of a state dict under `prefix`, with the prefix taken off; all of it where no key has the prefix."""
    part = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return part or state


@dataclass(frozen=True)
class LoadReport:
    """Keys by what became of them: loaded from the file, new (left as initialised), and in the file but unused."""

    path: str
    loaded: tuple[str, ...]
    new: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"{self.path}: {len(self.loaded)} tensors loaded; new, left as initialised: {summarise(self.new)}; "
            f"in the file but unused: {summarise(self.unused)}"
        )


def summarise(keys: Sequence[str]) -> str:
    """Count keys by what tells them apart at a glance: `264 (SPADE 184, structcond_stage_model 80)`."""
    groups = Counter("SPADE" if ".spade." in key else key.split(".")[0] for key in keys)
    listed = ", ".join(f"{name} {count}" for name, count in groups.most_common(6))
    return f"{len(keys)} ({listed}{', …' if len(groups) > 6 else ''})" if keys else "0"


def load_checkpoint(
    module: nn.Module,
    path: str | Path,
    ignore_keys: Sequence[str] = (),
    select: Callable[[StateDict], StateDict] = lambda state: state,
    may_be_new: Mapping[str, Callable[[str], bool]] | None = None,
) -> LoadReport:
    """Load `path` into `module` and log a report.

    `select` picks the part of the file that is meant; keys that begin with one of `ignore_keys` are neither loaded nor
    missed. A group of `may_be_new` (name -> does this key belong?) may be absent as a whole, never in part.

    Raises UserError that names a tensor which is missing or has another shape, and the option to use.
    """
    state = select(read_state_dict(path))
    own = module.state_dict()

    def ignored(key: str) -> bool:
        return any(key.startswith(prefix) for prefix in ignore_keys)

    usable = {key: value for key, value in state.items() if key in own and not ignored(key)}
    _check_shapes(path, own, usable)
    absent = [key for key in own if key not in usable]
    new = {key for key in absent if ignored(key)}
    for belongs in (may_be_new or {}).values():
        if not any(belongs(key) for key in usable):
            new.update(key for key in absent if belongs(key))
    _check_missing(path, own, [key for key in absent if key not in new])
    module.load_state_dict(usable, strict=False)
    report = LoadReport(
        str(path),
        tuple(usable),
        tuple(key for key in absent if key in new),
        tuple(key for key in state if key not in usable),
    )
    log.info("%s", report)
    return report


def _check_shapes(path: str | Path, own: StateDict, usable: StateDict) -> None:
    wrong = [key for key, value in usable.items() if value.shape != own[key].shape]
    if wrong:
        key = wrong[0]
        raise UserError(
            f"{path}: {key} has shape {tuple(usable[key].shape)} in the file but {tuple(own[key].shape)} in the model"
            f"{_and_more(wrong)}; use the config that belongs to this checkpoint{_or_ignore(wrong)}"
        )


def _check_missing(path: str | Path, own: StateDict, missing: list[str]) -> None:
    if missing:
        key = missing[0]
        raise UserError(
            f"{path}: {key}, of shape {tuple(own[key].shape)} in the model, is not in the file{_and_more(missing)}; "
            f"use a complete checkpoint of this model{_or_ignore(missing)}"
        )


def _and_more(keys: Sequence[str]) -> str:
    return f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""


def _or_ignore(keys: Sequence[str]) -> str:
    """The other way out, where one prefix up to a dot stands for all the keys."""
    shared = os.path.commonprefix(list(keys))
    prefix = keys[0] if len(keys) == 1 else shared[: shared.rfind(".") + 1]
    return f", or leave its initial value with ignore_keys: ['{prefix}']" if prefix else ""
