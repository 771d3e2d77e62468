"""How a checkpoint gets to the disk: whole, finite, and only where there is room for it."""

import errno
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins import TorchCheckpointIO
from torch import Tensor

from basicsr.utils.errors import UserError, first_line
from basicsr.utils.files import OutputError, whole_file


class NotFiniteError(UserError):
    """Weights that hold NaN or infinity: nothing to go on from."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and then renames it: a former one is there until the new one is whole."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """As Lightning calls it.

        Raises:
            UserError: the disk has no room, the folder cannot be written.
            NotFiniteError: the weights hold NaN or infinity.
        """
        target = Path(path)
        spoilt = [key for key, value in checkpoint.get("state_dict", {}).items() if not is_finite(value)]
        others = sorted(target.parent.glob("*.ckpt"), key=lambda file: file.stat().st_mtime)
        kept = f"{others[-1].name} is as it was" if others else "there is no former one"
        if spoilt:
            raise NotFiniteError(
                f"the weights are not finite any more ({spoilt[0]} and {len(spoilt) - 1} others): {target} is not "
                f"written, {kept}; start from an earlier checkpoint with a smaller model.base_learning_rate"
            )
        try:
            check_room(target, checkpoint)
            with whole_file(target) as draft:
                try:
                    torch.save(checkpoint, draft)
                except RuntimeError as error:  # torch's writer's word for a full disk
                    raise OSError(errno.ENOSPC, first_line(error)) from error
        except OutputError as error:
            raise UserError(
                f"the checkpoint {target} cannot be written ({error.reason}); {kept}. Make room, then --resume the run"
            ) from error


def check_room(target: Path, checkpoint: Mapping[str, Any]) -> None:
    """See before writing that the file will fit.

    Raises:
        OutputError: it will not.
    """
    folder = next(place for place in target.absolute().parents if place.exists())
    needed, free = sum(tensor.nbytes for tensor in tensors(checkpoint)), shutil.disk_usage(folder).free
    if free < needed:
        raise OutputError(target, OSError(None, f"it takes {needed / 1e9:.2f} GB and {free / 1e9:.2f} GB are free"))


def is_finite(value: Any) -> bool:
    """Whether a tensor of floats has no NaN and no infinity; anything else is."""
    return not isinstance(value, Tensor) or not value.is_floating_point() or bool(value.isfinite().all())


def tensors(node: Any) -> Iterator[Tensor]:
    """All tensors in nested mappings, lists and tuples."""
    if isinstance(node, Tensor):
        yield node
    elif isinstance(node, Mapping):
        for value in node.values():
            yield from tensors(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from tensors(value)
