"""How far training is: a bar on a terminal, a line now and then elsewhere."""

import shutil
import sys
import time
from collections.abc import Mapping
from typing import Any, NoReturn

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar
from tqdm import tqdm


class StepProgress(ProgressBar):
    """One bar over all steps; where the output is no terminal, a line now and then, ever more rarely."""

    def __init__(self) -> None:
        super().__init__()
        self._bar: tqdm[NoReturn] | None = None
        self._enabled = True
        self._step = self._first_step = 0
        self._started = self._next_news = 0.0

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._step = self._first_step = trainer.global_step
        self._started = self._next_news = time.monotonic()
        if self._enabled and sys.stderr.isatty():
            width, height = shutil.get_terminal_size()  # 80 x 24 for a terminal that does not tell: tqdm would hide
            self._bar = tqdm(
                total=self._total(trainer), initial=self._step, unit="step", smoothing=0.1, ncols=width, nrows=height
            )

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        done, self._step = trainer.global_step - self._step, trainer.global_step
        now = time.monotonic()
        if not self._enabled or done <= 0:
            return
        # Reading a loss waits for the GPU: only when it will be shown.
        news = now >= self._next_news or self._step == self._total(trainer)
        if self._bar is not None:
            if news:
                self._next_news = now + 0.5
                losses = {key: f"{value:.4g}" for key, value in last_losses(trainer).items()}
                self._bar.set_postfix(losses, refresh=False)
            self._bar.update(done)
        elif news:
            self._next_news = now + max(10, 0.05 * (now - self._started))
            self._write_line(trainer, now - self._started)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._close()

    def _write_line(self, trainer: pl.Trainer, seconds: float) -> None:
        total = self._total(trainer)
        rate = (self._step - self._first_step) / max(seconds, 1e-9)
        losses = "".join(f", {key} {value:.4g}" for key, value in last_losses(trainer).items())
        left = f", {tqdm.format_interval((total - self._step) / rate)} left" if total else ""
        sys.stderr.write(f"step {self._step}{f'/{total}' if total else ''}{losses}, {rate:.3g} steps/s{left}\n")
        sys.stderr.flush()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    @staticmethod
    def _total(trainer: pl.Trainer) -> int | None:
        total = trainer.estimated_stepping_batches
        return int(total) if total != float("inf") else None


def last_losses(trainer: pl.Trainer) -> dict[str, float]:
    """The newest training losses by short names: loss, and loss_edge where there is one."""
    metrics: Mapping[str, Any] = trainer.callback_metrics
    return {key: float(metrics[f"train/{key}"]) for key in ("loss", "loss_edge") if f"train/{key}" in metrics}
