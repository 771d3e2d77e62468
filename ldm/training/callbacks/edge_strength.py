"""Says, once, when the edge loss does next to nothing, or drowns the main loss."""

import logging
import statistics
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from ldm.modules.losses.edge_balance import Measured

log = logging.getLogger(__name__)

LOWEST, HIGHEST = 0.01, 3.0  # of |w G_edge| / |G_main|
AIM = 0.3  # what is advised
ENOUGH = 3  # measurements in a row that make it no accident


class EdgeStrength(Callback):
    """Reads the ratio of the edge loss's gradient to the main loss's wherever a step measures it (`EdgeTerm`).

    When three measurements in a row lie below 1 %, or above 3, one line says so, with the weight that would give 0.3;
    a run that ends with fewer says so at its end. Steps of the warm-up do not count.
    """

    def __init__(self) -> None:
        self._in_a_row: list[tuple[float, float]] = []  # ratio and weight, all below, or all above
        self._told = False
        self._last_step = -1

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        measured: Measured | None = getattr(getattr(pl_module, "edge_term", None), "measured", None)
        if self._told or measured is None or measured.step == self._last_step:
            return
        self._last_step = measured.step
        if pl_module.edge_loss.options.warmup(measured.step) < 1:
            return
        outside = _side(measured.ratio)
        if self._in_a_row and _side(self._in_a_row[0][0]) != outside:
            self._in_a_row = []
        if outside:
            self._in_a_row.append((measured.ratio, measured.weight))
        if len(self._in_a_row) == ENOUGH:
            self._tell(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if self._in_a_row and not self._told:
            self._tell(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {"told": self._told, "in_a_row": self._in_a_row, "last_step": self._last_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._told, self._last_step = state_dict["told"], state_dict["last_step"]
        self._in_a_row = [(float(ratio), float(weight)) for ratio, weight in state_dict["in_a_row"]]

    def _tell(self, trainer: pl.Trainer) -> None:
        self._told = True
        if not trainer.is_global_zero:
            return
        ratios = [ratio for ratio, _ in self._in_a_row]
        # The weight changes from step to step under auto:f; the ratio that a weight of 1 would have does not.
        advised = AIM / statistics.geometric_mean(ratio / weight for ratio, weight in self._in_a_row)
        low = _side(ratios[0]) < 0
        log.warning(
            "the edge loss %s: its gradient is %.2g times the main loss's (median of %d, train/edge_grad_ratio); "
            "model.params.edge_loss_weight=%.2g would make that %g, and auto:%g keeps it there",
            "does next to nothing" if low else "drowns the main loss",
            statistics.median(ratios),
            len(ratios),
            advised,
            AIM,
            AIM,
        )


def _side(ratio: float) -> int:
    """-1 below what does anything, 1 above what is sensible, 0 between."""
    return (ratio > HIGHEST) - (ratio < LOWEST)
