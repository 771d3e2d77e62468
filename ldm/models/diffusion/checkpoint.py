"""Checkpoints: filter what was read, load it, and report what happened."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from basicsr.utils.errors import UserError
from ldm.models.formats.diffusers_folder import lacking
from ldm.models.formats.diffusers_keys import StateDict as StateDict
from ldm.models.formats.reading import FROZEN as FROZEN
from ldm.models.formats.reading import Source, named, read_state_dict
from ldm.models.initial_values import refuse_if_skipped

log = logging.getLogger(__name__)


def take_prefix(state: StateDict, prefix: str) -> StateDict:
    """The part of a state dict under `prefix`, with the prefix taken off; all of it where no key has the prefix."""
    part = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return part or state


def with_own_part(state: StateDict, own: StateDict, prefix: str) -> StateDict:
    """A state that lacks exactly the part under `prefix`, completed by a model's own, which is read already."""
    if FROZEN in state or any(key.startswith(prefix) for key in state) or not any(key in own for key in state):
        return state
    part = {key: value for key, value in own.items() if key.startswith(prefix)}
    log.info(
        "no %s* in the checkpoint: that part keeps the weights of its own ckpt_path (%d tensors)", prefix, len(part)
    )
    return state | part


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
    source: Source,
    ignore_keys: Sequence[str] = (),
    select: Callable[[StateDict], StateDict] = lambda state: state,
    may_be_new: Mapping[str, Callable[[str], bool]] | None = None,
) -> LoadReport:
    """Load what is at `source`, all forms of which `read_state_dict` describes, into `module` and log a report.

    `select` picks the part of the file that is meant; keys that begin with one of `ignore_keys` are neither loaded nor
    missed. A group of `may_be_new` (name -> does this key belong?) may be absent as a whole, never in part. Weights
    that differ from the model's in trailing axes of length 1 alone, as those of a linear layer from those of a 1 x 1
    convolution, are reshaped, which is logged.

    The file's memory-mapped tensors take the place of the module's, so that what is never written, as frozen weights
    are not, needs no memory of its own. The file may be renamed or deleted then, but not be written to.

    Raises:
        UserError: a tensor is missing or has another shape; the message names it.
        WeightsMissingError: within `initial_values_skipped`, one is missing.
    """
    own = module.state_dict()
    path = named(source)
    state = _reshaped(path, select(read_state_dict(source)), own)

    def ignored(key: str) -> bool:
        return any(key.startswith(prefix) for prefix in ignore_keys)

    usable = {key: value for key, value in state.items() if key in own and not ignored(key)}
    _check_shapes(path, own, usable)
    absent = [key for key in own if key not in usable]
    if absent:
        refuse_if_skipped()
    new = {key for key in absent if ignored(key)}
    for name, belongs in (may_be_new or {}).items():
        group = [key for key in absent if belongs(key) and key not in new]
        if group and not any(belongs(key) for key in usable):
            new.update(group)
            log.info("%s: left as initialised: %s (%d tensors)", path, name, len(group))
    _check_missing(path, own, [key for key in absent if key not in new], state)
    module.load_state_dict(_to_be_taken_over(usable, own), strict=False, assign=True)
    report = LoadReport(
        path,
        tuple(usable),
        tuple(key for key in absent if key in new),
        tuple(key for key in state if key not in usable),
    )
    log.info("%s", report)
    return report


def _to_be_taken_over(state: StateDict, own: StateDict) -> StateDict:
    """The state in the model's precision and on its device, each tensor with memory of its own."""
    taken: StateDict = {}
    seen: set[int] = set()
    for key, value in state.items():
        tensor = value.to(own[key])
        storage = tensor.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != tensor.nbytes or not tensor.is_contiguous():
            tensor = tensor.clone(memory_format=torch.contiguous_format)
        seen.add(tensor.untyped_storage().data_ptr())
        taken[key] = tensor
    return taken


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


def _check_shapes(path: str, own: StateDict, usable: StateDict) -> None:
    wrong = [key for key, value in usable.items() if value.shape != own[key].shape]
    if wrong:
        key = wrong[0]
        raise UserError(
            f"{path}: {key} has shape {tuple(usable[key].shape)} in the file but {tuple(own[key].shape)} in the model"
            f"{_and_more(wrong)}; use the config that belongs to this checkpoint"
        )


def _check_missing(path: str, own: StateDict, missing: list[str], state: StateDict) -> None:
    """Raise UserError for tensors that the file lacks. Leaving them random is never advised: results depend on them."""
    if not missing:
        return
    if FROZEN in state:
        raise UserError(
            f"{path} leaves out the frozen parts (save_trainable_only): go on with its run by --resume, or start from "
            "a complete checkpoint"
        )
    if not any(key in own for key in state):
        raise UserError(
            f"{path} is a checkpoint of another model: none of its {len(state)} tensors ({next(iter(state), '')}, …) "
            f"is among this model's ({missing[0]}, …); use a checkpoint of this model"
        )
    key = missing[0]
    lacks = [f" has no {part}" for part in lacking(state) if part not in lacking(own)]
    raise UserError(
        f"{path}{' and'.join(lacks)}: {key}, of shape {tuple(own[key].shape)} in the "
        f"model, is not in the file{_and_more(missing)}; "
        f"use a complete checkpoint of this model, which has all of {summarise(missing)}"
    )


def _and_more(keys: Sequence[str]) -> str:
    return f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""
