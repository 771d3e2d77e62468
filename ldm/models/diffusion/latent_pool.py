"""A pool of latents: a pair is encoded once, and serves several steps."""

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from basicsr.data.pair_pool import PairPool
from basicsr.utils.errors import FieldError, fields_named

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Encoded:
    """What a step needs of pairs that were encoded; latents are scaled."""

    z_gt: Tensor  # (B, 4, H/f, W/f)
    z_struct: Tensor  # (B, C, H/f, W/f)
    gt_pm1: Tensor | None  # (B, 3, H, W), where a loss looks at it
    paths: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)


class LatentPool:
    """k pools in a row, each of which holds `size` pairs: what leaves one is drawn, and enters the next.

    B new pairs bring about k B: B of each pool. So a pair is drawn k times, at k different steps (at one, where `size`
    is 0); but those that the pools are filled with come oftener. Held are samples of the posteriors, whose spread is a
    small share of the latents' (0.6 % in the demo's): to draw them anew would be twice the memory for next to nothing.
    """

    def __init__(self, draws: int) -> None:
        self.draws = draws
        self.drawn: tuple[str, ...] = ()  # the files of the last draw
        self._saved: list[list[dict[str, Any]]] = []
        self.open(0, 0)

    def open(self, size: int, seed: int, rank: int = 0, ranks: int = 1) -> None:
        """Begin empty, with pools of `size` pairs: a multiple of the batch's, or 0."""
        self._size, self._place = size, (rank, ranks)
        self._pools: list[PairPool] = [PairPool(size, seed, rank, stage) for stage in range(self.draws)]

    def open_for(self, trainer: Any) -> None:
        """The same for a trainer's run: the size is its data module's, which then gives pairs as they come.

        Raises:
            FieldError: the data are of another kind.
        """
        leave_pool = getattr(trainer.datamodule, "leave_pool", None)
        with fields_named(lambda field: f"model.params.{field}"):
            if leave_pool is None:
                raise FieldError("pool", "is 'latents', and the data have no pair pool: leave it out")
            self.open(leave_pool(), torch.initial_seed(), trainer.global_rank, trainer.world_size)

    def draw(self, new: Encoded) -> Encoded:
        """Exchange B new pairs for k B that are to be trained on."""
        self._restore(new)
        drawn = []
        for pool in self._pools:
            new = pool.push_pop(new)
            drawn.append(new)
        z_gt, z_struct = (torch.cat([getattr(each, name) for each in drawn]) for name in ("z_gt", "z_struct"))
        pictures = [each.gt_pm1 for each in drawn if each.gt_pm1 is not None]
        self.drawn = tuple(path for each in drawn for path in each.paths)
        return Encoded(z_gt, z_struct, torch.cat(pictures) if pictures else None, self.drawn)

    def state_dict(self) -> dict[str, Any]:
        """What the pools of all ranks hold, which must call it together. Latents are small, and dear to make again."""
        if not self._size or self._saved:
            return {"ranks": self._saved}
        mine = [{name: _on_host(part) for name, part in pool.state_dict().items()} for pool in self._pools]
        everyone = [mine] * self._place[1]
        if len(everyone) > 1:
            torch.distributed.all_gather_object(everyone, mine)
        return {"ranks": everyone}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave; it goes to the device of the first batch when that comes."""
        self._saved = state["ranks"]

    def _restore(self, like: Encoded) -> None:
        saved, self._saved = self._saved, []
        if not saved or not self._size:
            return
        rank, ranks = self._place
        mine = saved[rank] if len(saved) == ranks else []
        if len(mine) != self.draws or not all(
            pool.load_state_dict(state, like) for pool, state in zip(self._pools, mine, strict=True)
        ):
            log.warning("processes, draws_per_pair, queue_size or sizes are others than before: the pool fills afresh")


def _on_host(part: Any) -> Any:
    return part.cpu() if isinstance(part, Tensor) else part
