"""Training pairs, and the pool that mixes them across batches (Real-ESRGAN, Wang et al. 2021, section 3.3).

A batch is degraded as a whole, so its samples share resize modes and orders of operations. The pool breaks that tie: it
keeps `size` finished pairs and exchanges random ones for those of each new batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor

from basicsr.utils.errors import FieldError
from basicsr.utils.rng import numpy_rng


@dataclass(frozen=True)
class Pair:
    """A batch of low-quality and ground-truth pictures of the same size, and what belongs to each sample.

    Raises:
        ValueError: the parts disagree on the number of samples, or the pictures on their size.
    """

    lq_pm1: Tensor  # (B, 3, H, W), -1 to 1
    gt_pm1: Tensor  # (B, 3, H, W), -1 to 1
    paths: tuple[str, ...]  # B of them, the files they came from
    edge_01: Tensor | None = None  # (B, 1, H, W), 0 to 1: the data set's edge maps, where it has any

    def __post_init__(self) -> None:
        batch, _, *size = self.gt_pm1.shape
        fits = self.lq_pm1.shape == self.gt_pm1.shape and len(self.paths) == batch
        if not fits or (self.edge_01 is not None and self.edge_01.shape != (batch, 1, *size)):
            edge = "" if self.edge_01 is None else f", edge_01 {tuple(self.edge_01.shape)}"
            raise ValueError(
                f"not a pair: lq_pm1 {tuple(self.lq_pm1.shape)}, gt_pm1 {tuple(self.gt_pm1.shape)}{edge}, "
                f"{len(self.paths)} paths"
            )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, samples: slice | Sequence[int]) -> "Pair":
        """Some of the samples at full size; a list of places makes copies."""
        places = range(len(self))[samples] if isinstance(samples, slice) else samples
        edge_01 = None if self.edge_01 is None else self.edge_01[samples]
        return Pair(self.lq_pm1[samples], self.gt_pm1[samples], tuple(self.paths[i] for i in places), edge_01)

    def cropped(self, rows: slice, columns: slice) -> "Pair":
        """The same window of every picture and map."""
        window = (..., rows, columns)
        edge_01 = None if self.edge_01 is None else self.edge_01[window]
        return Pair(self.lq_pm1[window], self.gt_pm1[window], self.paths, edge_01)


class Samples(Protocol):
    """A dataclass of tensors, each (B, ...), and the B files that they came from: pairs, or what is made of them."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def paths(self) -> tuple[str, ...]: ...

    def __len__(self) -> int: ...


Batch = TypeVar("Batch", bound=Samples)


class PairPool:
    """Holds `size` samples on the batches' device; 0 means no pool: every batch comes back as it is.

    What is drawn depends on (seed, rank, stage, number of calls) alone. stage: which of several pools in a row it is.

    Raises:
        FieldError: `size` is negative.
    """

    def __init__(self, size: int, seed: int, rank: int = 0, stage: int = 0) -> None:
        if size < 0:
            raise FieldError("queue_size", f"is {size}: use a multiple of the batch size, or 0 for no pair pool")
        self.size = size
        self._stream = ("pool", seed, rank, stage) if stage else ("pool", seed, rank)
        self._calls = 0
        self._held = 0
        self._parts: dict[str, Tensor] = {}  # those of all places, by their names in the batch
        self._paths: list[str] = [""] * size

    @torch.no_grad()
    def push_pop(self, batch: Batch) -> Batch:
        """Put a batch in and take one of the same length out.

        While the pool fills, that is the batch itself; once it is full, stored samples, drawn without replacement,
        whose places the new ones take. A later batch may be shorter than the first, as an epoch's last one is.

        Raises:
            FieldError: the pool's size is not a multiple of the first batch's.
            ValueError: the batch has edge maps and the pool none, or the other way round.
        """
        if self.size == 0:
            return batch
        self._calls += 1
        parts = _parts(batch)
        if not self._parts:
            self._check_size(len(batch))
            self._parts = {name: part.new_empty((self.size, *part.shape[1:])) for name, part in parts.items()}
        if parts.keys() != self._parts.keys():
            raise ValueError(f"a batch of {', '.join(parts)} for a pool of {', '.join(self._parts)}")
        if self._held < self.size:
            count = min(len(batch), self.size - self._held)
            self._store(list(range(self._held, self._held + count)), batch)
            self._held += count
            return batch
        rng = numpy_rng(*self._stream, self._calls)
        places = rng.choice(self.size, size=len(batch), replace=False).tolist()
        paths = tuple(self._paths[i] for i in places)
        stored = replace(batch, paths=paths, **{name: part[places] for name, part in self._parts.items()})  # copies
        self._store(places, batch)
        return stored

    def state_dict(self) -> dict[str, Any]:
        """What the pool holds and how often it was asked, as plain data and tensors."""
        return {**self._parts, "paths": self._paths, "held": self._held, "calls": self._calls}

    def load_state_dict(self, state: Mapping[str, Any], like: Batch) -> bool:
        """Take up a saved state, on the device of `like`, a batch of the samples to come.

        Returns:
            False, with nothing done, where the saved pool has another size, other frames, or other parts.
        """
        parts = {name: part for name, part in state.items() if isinstance(part, Tensor)}
        wanted = {name: (self.size, *part.shape[1:]) for name, part in _parts(like).items()}
        if {name: tuple(part.shape) for name, part in parts.items()} != wanted:
            return False
        self._parts = {name: part.to(_parts(like)[name].device, copy=True) for name, part in parts.items()}
        self._paths, self._held, self._calls = list(state["paths"]), state["held"], state["calls"]
        return True

    def _store(self, places: list[int], batch: Batch) -> None:
        """Write the first len(places) samples of `batch` there, each sample's parts to the same place."""
        for name, part in _parts(batch).items():
            self._parts[name][places] = part[: len(places)]
        for place, path in zip(places, batch.paths, strict=False):  # the pool's last gap may be shorter than the batch
            self._paths[place] = path

    def _check_size(self, batch_size: int) -> None:
        below = self.size // batch_size * batch_size
        if below != self.size:
            nearest = " or ".join(str(n) for n in (below, below + batch_size) if n > 0)
            raise FieldError(
                "queue_size",
                f"is {self.size}, not a multiple of the batch size {batch_size}: use {nearest}, or 0 for no pair pool",
            )


def _parts(batch: Samples) -> dict[str, Tensor]:
    """A batch's tensors by name."""
    return {name: part for name, part in vars(batch).items() if isinstance(part, Tensor)}
