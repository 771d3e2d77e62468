"""How far the edge loss fell, measured on pictures that do not change."""

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from basicsr.utils import checks
from ldm.training.callbacks.isolated import example_pair, isolated


class EdgeProbe(Callback):
    """Measures the edge loss on the first validation batch before and after training, and says how far it fell.

    Args:
        every: steps from one further measurement to the next, logged as `val/loss_edge_fixed`; 0 makes none.

    Raises:
        FieldError: `every` is negative.
    """

    def __init__(self, every: int = 0) -> None:
        self.every = checks.whole_number("every", every, 0)
        self._last_step = 0
        self.start: dict[str, float] = {}
        self.end: dict[str, float] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero and not self.start:  # a resumed run compares with its very beginning
            self.start = self._measure(trainer, pl_module)
            self._log(trainer, 0, self.start)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        step = trainer.global_step
        new, self._last_step = step != self._last_step, step  # several batches share a step when gradients accumulate
        if new and self.every and step % self.every == 0 and trainer.is_global_zero:
            self._log(trainer, step, self._measure(trainer, pl_module))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero and self.start:
            self.end = self._measure(trainer, pl_module)

    def report(self) -> str:
        """One line: the edge loss before and after."""
        before, after = self.start["loss_edge"], self.end["loss_edge"]
        change = f" ({100 * (after - before) / before:+.0f} %)" if before > 0 else ""
        return f"edge loss on the fixed validation batch: {before:.4g} -> {after:.4g}{change}"

    def state_dict(self) -> dict[str, Any]:
        return {"start": self.start}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.start = state_dict["start"]

    def _log(self, trainer: pl.Trainer, step: int, measured: dict[str, float]) -> None:
        for logger in trainer.loggers if self.every else ():
            # The row of the step that has just been done, which Lightning counts from 0.
            logger.log_metrics({"val/loss_edge_fixed": measured["loss_edge"]}, step=max(0, step - 1))

    @staticmethod
    def _measure(trainer: pl.Trainer, pl_module: Any) -> dict[str, float]:
        with isolated(trainer, pl_module):
            measured = pl_module.edge_probe(example_pair(trainer, pl_module))
        return {key: float(value) for key, value in measured.items()}
