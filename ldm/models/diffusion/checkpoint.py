"""Checkpoints: read safely, unwrap, filter, load, and report what happened."""

import logging
import pickle
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from basicsr.utils.errors import UserError, first_line

log = logging.getLogger(__name__)

StateDict = dict[str, Tensor]

# What trainers save a state dict under, the preferred one first: Lightning, BasicSR, others, DeepSpeed.
CONTAINERS = ("state_dict", "params_ema", "params", "model_ema", "ema", "model_state_dict", "model", "module")
# What wrappers add to the names of a module's tensors; no module of ours has these names.
WRAPPERS = frozenset(
    {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module", "_ddp_module"}
)
# What every whole model's names begin with, and an autoencoder's own.
ROOTS = ("model.diffusion_model", "first_stage_model", "cond_stage_model", "structcond_stage_model")
AUTOENCODER_ROOTS = ("encoder.conv_in", "decoder.conv_in", "quant_conv", "post_quant_conv")


class _Inert:
    """Stands in for every class a checkpoint names that is not a tensor's: it takes anything and does nothing."""

    def __new__(cls, *_args: object) -> "_Inert":
        return super().__new__(cls)

    def __setstate__(self, _state: object) -> None:
        """Drop the pickled attributes."""


def read_state_dict(path: str | Path) -> StateDict:
    """The tensors of a Lightning `.ckpt`, a bare state dict or a safetensors file, on the CPU, memory-mapped.

    The kind of file is told by its content, whatever its name. What wrappers added to the keys is taken off: see
    `canonical`. Nothing in the file can run code: pickles are read with `weights_only=True`, and classes that old
    Lightning versions left in checkpoints (callbacks, configs) are replaced by inert placeholders. Both are logged.

    Raises:
        UserError: the file is missing, truncated, or holds no tensors.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        where = "check the path"
        if path.is_dir():
            where = "it is a folder (one that DeepSpeed wrote is put together by the zero_to_fp32.py inside it)"
        raise UserError(f'no checkpoint at {path}: {where} (README, "Checkpoints", says where to get the files)')
    try:
        content = _read(path)
    except Exception as error:  # a damaged file makes the readers raise nearly anything
        raise UserError(
            f"{path} cannot be read as a checkpoint; damaged, or something else? {first_line(error)}"
        ) from error
    tensors, notes = canonical(content)
    if not tensors:
        raise UserError(f"{path} holds no tensors; expected a Lightning checkpoint, a state dict or a safetensors file")
    if notes:
        log.info("%s: %s", path, "; ".join(notes))
    return tensors


def _read(path: Path) -> object:
    """The content of a file by what its first bytes say that it is."""
    with path.open("rb") as file:
        head = file.read(16)
    if zipfile.is_zipfile(path):
        return _read_archive(path)
    # safetensors: the length of a JSON header in 8 bytes, then the header.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= path.stat().st_size:
        return load_file(path)
    if head.startswith(b"version https:"):
        raise ValueError("it is a Git LFS pointer: fetch the file itself with git lfs pull")
    if head.lstrip().startswith(b"<"):
        raise ValueError("it is a web page: download the file itself")
    # The format before PyTorch 1.6: it cannot be memory-mapped or inspected, so only plain tensors are accepted.
    try:
        return _load(path)
    except Exception as error:
        raise ValueError("neither safetensors, nor a PyTorch archive, nor a plain pickle of tensors") from error


def _read_archive(path: Path) -> object:
    unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    if unknown:
        log.info("%s names classes that are not loaded: %s", path.name, ", ".join(sorted(unknown)))
    try:
        with torch.serialization.safe_globals([(_Inert, name) for name in unknown]):
            return _load(path, mmap=True)
    except pickle.UnpicklingError as error:
        if not unknown:
            raise
        # PyTorch's own message advises to load it unsafely.
        raise ValueError(
            f"it wants code to be run, which is refused ({', '.join(sorted(unknown))}); "
            "have its state dict saved alone, best as .safetensors"
        ) from error


def _load(path: Path, mmap: bool = False) -> object:
    if path.suffix != ".safetensors":
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    with path.open("rb") as file:  # PyTorch goes by the name, and maps no open file into memory
        return torch.load(file, map_location="cpu", weights_only=True)


def canonical(content: object) -> tuple[StateDict, list[str]]:
    """The tensors in what a file holds, under the names that the models give them, and what was done to the names.

    Taken off, in this order: the dictionaries that trainers save state dicts in (`CONTAINERS`); the parts of names that
    DDP, FSDP, torch.compile, DeepSpeed and activation checkpointing add (`WRAPPERS`), wherever they stand; and what a
    class that holds the model puts before all its names, such as `net.` or `ema_model.`. Where there are averaged
    weights beside the last ones, the averaged ones are taken.

    Raises:
        UserError: two tensors come to have one name.
    """
    notes: list[str] = []
    while isinstance(content, Mapping):
        inner = next((name for name in CONTAINERS if _holds_tensors(content.get(name))), None)
        if inner is None:
            break
        if inner != CONTAINERS[0]:
            notes.append(f"its {inner!r} is taken")
        content = content[inner]
    items = content.items() if isinstance(content, Mapping) else ()
    tensors = {str(key): value for key, value in items if isinstance(value, Tensor)}
    renamed = {key: ".".join(part for part in key.split(".") if part not in WRAPPERS) for key in tensors}
    if wrapped := sorted({part for key in tensors for part in key.split(".") if part in WRAPPERS}):
        notes.append(f"taken off the keys: {', '.join(f'{part}.' for part in wrapped)}")
    prefix = _holder(renamed.values())
    if prefix:
        notes.append(f"taken off the keys: {prefix}")
        renamed = {key: name.removeprefix(prefix) for key, name in renamed.items() if name.startswith(prefix)}
    by_name: dict[str, str] = {}
    for key, name in renamed.items():
        if by_name.setdefault(name, key) != key:
            raise UserError(
                f"the checkpoint holds {name} twice, as {by_name[name]} and as {key}; save one of them alone"
            )
    return {name: tensors[key] for name, key in by_name.items()}, notes


def _holds_tensors(content: object) -> bool:
    """Whether it is a state dict, perhaps inside further containers."""
    if not isinstance(content, Mapping):
        return False
    return any(isinstance(value, Tensor) for value in content.values()) or any(
        _holds_tensors(content.get(name)) for name in CONTAINERS
    )


def _holder(keys: Iterable[str]) -> str:
    """What stands before the names of our models' parts in most keys, with its dot; averaged weights win a tie."""
    found: Counter[str] = Counter()
    for parts in (ROOTS, AUTOENCODER_ROOTS):
        for key in keys:
            dotted = f".{key}"
            place = min((at for root in parts if (at := dotted.find(f".{root}.")) >= 0), default=-1)
            if place >= 0:
                found[key[:place]] += 1
        if found:
            break
    return max(found, key=lambda prefix: (found[prefix], "ema" in prefix, not prefix), default="")


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
    missed. A group of `may_be_new` (name -> does this key belong?) may be absent as a whole, never in part. Weights
    that differ from the model's in trailing axes of length 1 alone, as those of a linear layer from those of a 1 x 1
    convolution, are reshaped, which is logged.

    Raises:
        UserError: a tensor is missing or has another shape; the message names it.
    """
    own = module.state_dict()
    state = _reshaped(str(path), select(read_state_dict(path)), own)

    def ignored(key: str) -> bool:
        return any(key.startswith(prefix) for prefix in ignore_keys)

    usable = {key: value for key, value in state.items() if key in own and not ignored(key)}
    _check_shapes(path, own, usable)
    absent = [key for key in own if key not in usable]
    new = {key for key in absent if ignored(key)}
    for belongs in (may_be_new or {}).values():
        if not any(belongs(key) for key in usable):
            new.update(key for key in absent if belongs(key))
    _check_missing(path, own, [key for key in absent if key not in new], state)
    module.load_state_dict(usable, strict=False)
    report = LoadReport(
        str(path),
        tuple(usable),
        tuple(key for key in absent if key in new),
        tuple(key for key in state if key not in usable),
    )
    log.info("%s", report)
    return report


def _reshaped(path: str, state: StateDict, own: StateDict) -> StateDict:
    """The state with the model's shapes, where they differ from the file's in trailing axes of length 1 alone."""

    def core(shape: Sequence[int]) -> tuple[int, ...]:
        return tuple(shape[: max((axis + 1 for axis, length in enumerate(shape) if length != 1), default=0)])

    def differs_in_ones(key: str, value: Tensor) -> bool:
        return (
            key in own
            and value.shape != own[key].shape
            and value.ndim > 1
            and core(value.shape) == core(own[key].shape)
        )

    keys = [key for key, value in state.items() if differs_in_ones(key, value)]
    if not keys:
        return state
    log.info("%s: %d tensors reshaped, such as %s to %s", path, len(keys), keys[0], tuple(own[keys[0]].shape))
    return state | {key: state[key].reshape(own[key].shape) for key in keys}


def _check_shapes(path: str | Path, own: StateDict, usable: StateDict) -> None:
    wrong = [key for key, value in usable.items() if value.shape != own[key].shape]
    if wrong:
        key = wrong[0]
        raise UserError(
            f"{path}: {key} has shape {tuple(usable[key].shape)} in the file but {tuple(own[key].shape)} in the model"
            f"{_and_more(wrong)}; use the config that belongs to this checkpoint"
        )


def _check_missing(path: str | Path, own: StateDict, missing: list[str], state: StateDict) -> None:
    """Raise UserError for tensors that the file lacks. To leave them random is no advice: results depend on them."""
    if not missing:
        return
    if not any(key in own for key in state):
        raise UserError(
            f"{path} is a checkpoint of another model: none of its {len(state)} tensors ({next(iter(state), '')}, …) "
            f"is among this model's ({missing[0]}, …); use a checkpoint of this model"
        )
    key = missing[0]
    raise UserError(
        f"{path}: {key}, of shape {tuple(own[key].shape)} in the model, is not in the file{_and_more(missing)}; "
        f"use a complete checkpoint of this model, which has all of {summarise(missing)}"
    )


def _and_more(keys: Sequence[str]) -> str:
    return f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""
