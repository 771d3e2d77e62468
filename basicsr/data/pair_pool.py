"""Training pairs, and the pool that mixes them across batches (Real-ESRGAN, Wang et al. 2021, section 3.3).

A batch is degraded as a whole, so its samples share resize modes and orders of operations. The pool breaks that tie: it
keeps `size` finished pairs and exchanges random ones for those of each new batch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from basicsr.utils.errors import UserError
from basicsr.utils.rng import numpy_rng


@dataclass(frozen=True)
class Pair:
    """A batch of low-quality and ground-truth pictures of the same size, with the files they came from.

    Raises:
        ValueError: the three disagree on the number of samples, or the pictures on their size.
    """

    lq_pm1: Tensor  # (B, 3, H, W), -1 to 1
    gt_pm1: Tensor  # (B, 3, H, W), -1 to 1
    paths: tuple[str, ...]  # B of them

    def __post_init__(self) -> None:
        if self.lq_pm1.shape != self.gt_pm1.shape or len(self.paths) != len(self.gt_pm1):
            raise ValueError(
                f"not a pair: lq_pm1 {tuple(self.lq_pm1.shape)}, gt_pm1 {tuple(self.gt_pm1.shape)}, "
                f"{len(self.paths)} paths"
            )

    def __len__(self) -> int:
        return len(self.paths)


class PairPool:
    """Holds `size` samples on the batches' device; 0 means no pool: every batch comes back as it is.

    What is drawn depends on (seed, rank, number of calls) alone.

    Raises:
        UserError: `size` is negative.
    """

    def __init__(self, size: int, seed: int, rank: int = 0) -> None:
        if size < 0:
            raise UserError(f"queue_size is {size}: use a multiple of the batch size, or 0 for no pair pool")
        self.size = size
        self._stream = ("pool", seed, rank)
        self._calls = 0
        self._held = 0
        self._lq: Tensor | None = None
        self._gt: Tensor | None = None
        self._paths: list[str] = [""] * size

    @torch.no_grad()
    def push_pop(self, pair: Pair) -> Pair:
        """Put a batch in and take one of the same length out.

        While the pool fills, that is the batch itself; once it is full, stored samples, drawn without replacement,
        whose places the new ones take. A later batch may be shorter than the first, as an epoch's last one is.

        Raises:
            UserError: the pool's size is no multiple of the first batch's.
        """
        if self.size == 0:
            return pair
        self._calls += 1
        if self._lq is None or self._gt is None:
            self._check_size(len(pair))
            self._lq = pair.lq_pm1.new_empty((self.size, *pair.lq_pm1.shape[1:]))
            self._gt = pair.gt_pm1.new_empty((self.size, *pair.gt_pm1.shape[1:]))
        if self._held < self.size:
            count = min(len(pair), self.size - self._held)
            self._store(list(range(self._held, self._held + count)), pair)
            self._held += count
            return pair
        rng = numpy_rng(*self._stream, self._calls)
        places = rng.choice(self.size, size=len(pair), replace=False).tolist()
        stored = Pair(self._lq[places], self._gt[places], tuple(self._paths[i] for i in places))  # indexing copies
        self._store(places, pair)
        return stored

    def state_dict(self) -> dict[str, Any]:
        """What the pool holds and how often it was asked, as plain data and tensors."""
        return {"lq_pm1": self._lq, "gt_pm1": self._gt, "paths": self._paths, "held": self._held, "calls": self._calls}

    def load_state_dict(self, state: Mapping[str, Any], like: Tensor) -> bool:
        """Take up a saved state, on the device of `like`, a batch (B, 3, H, W) of the pictures to come.

        Returns:
            False, with nothing done, where the saved pool has another size or other frames.
        """
        lq, gt = state["lq_pm1"], state["gt_pm1"]
        if lq is None or gt is None or (len(lq), *lq.shape[1:]) != (self.size, *like.shape[1:]):
            return False
        self._lq, self._gt = lq.to(like.device), gt.to(like.device)
        self._paths, self._held, self._calls = list(state["paths"]), state["held"], state["calls"]
        return True

    def _store(self, places: list[int], pair: Pair) -> None:
        """Write the first len(places) samples of `pair` there, each sample's parts to the same place."""
        assert self._lq is not None and self._gt is not None  # push_pop has made them
        self._lq[places] = pair.lq_pm1[: len(places)]
        self._gt[places] = pair.gt_pm1[: len(places)]
        for place, path in zip(places, pair.paths, strict=False):  # the pool's last gap may be shorter than the batch
            self._paths[place] = path

    def _check_size(self, batch_size: int) -> None:
        below = self.size // batch_size * batch_size
        if below != self.size:
            nearest = " or ".join(str(n) for n in (below, below + batch_size) if n > 0)
            raise UserError(
                f"queue_size is {self.size}, no multiple of the batch size {batch_size}: "
                f"use {nearest}, or 0 for no pair pool"
            )
