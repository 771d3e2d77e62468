"""When checkpoints are written: where a resumed run goes on exactly as if nothing had happened.

There are two such moments: the end of a step after which no validation follows, and the end of a validation. Between a
step and its validation there is none, for Lightning takes the validation of a step that it resumes from for done.
"""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint

from ldm.training.loggers import MetricsFile
from ldm.training.stop_signals import StopSignals


class Interrupted(Exception):  # noqa: N818  (no error: somebody asked for it)
    """Training was asked to stop, and has stopped with everything saved."""


def validation_follows(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Whether Lightning validates after this training batch (a `val_check_interval` that is a time aside)."""
    every = trainer.check_val_every_n_epoch
    if not trainer.enable_validation or sum(map(float, trainer.num_val_batches)) == 0:
        return False
    if every is not None and (trainer.current_epoch + 1) % every:
        return False
    if trainer.should_stop:
        return True
    done = trainer.fit_loop.total_batch_idx if every is None else batch_idx
    interval = trainer.val_check_batch
    if interval is None or interval == float("inf"):
        return interval is not None and trainer.is_last_batch
    return (done + 1) % int(interval) == 0


def step_is_done(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Whether this batch was the last of those whose gradients one step adds up."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch


class StepCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint, moved to the moments above; the end of training is `KeepLast`'s."""

    _waits = False

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not step_is_done(trainer, batch_idx):
            return
        self._waits = validation_follows(trainer, batch_idx)
        if not self._waits:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        if self._waits:
            self._waits = False
            super().on_train_batch_end(trainer, pl_module, None, None, 0)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Nothing: see `KeepLast`."""


class KeepLast(Checkpoint):
    """Writes `last.ckpt` when training ends, and when a signal asks it to stop after the step.

    Several processes agree on the step after which they stop. Lightning's own handlers are kept out: the one for
    SIGTERM stops between any two batches without saving, and on several processes waits within the handler for the
    others, which hangs; the one for SIGUSR1 saves in the midst of a step.

    Stands after `StepCheckpoint`, whose state it saves.

    Raises:
        Interrupted: after the checkpoint is written.
    """

    def __init__(self, file: Path, signals: StopSignals) -> None:
        self.file = file
        self.signals = signals
        self._stopping = False
        self._waits = False
        self._saved_step = -1

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Lightning registers its handlers after this hook; there is no public way to say no.
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]  # replaced on purpose

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.signals.deferred = True

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.signals.deferred = False

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        asked = self._is_asked(trainer)
        if not step_is_done(trainer, batch_idx) or self._stopping:
            return
        # The last step's state is saved here and not when training has ended: by then Lightning counts the epoch as
        # finished, wherever it was, and a resumed run would start the next one.
        if asked or trainer.should_stop or trainer.global_step == trainer.max_steps:
            self._stopping = asked
            self._waits = validation_follows(trainer, batch_idx)
            if not self._waits:
                self._save(trainer)

    # Lightning writes a step's numbers to the loggers after on_train_batch_end, and a validation's before
    # on_validation_end: leave at the first hook that follows both.
    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._leave()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit" and self._is_asked(trainer):
            self._stopping = self._waits = True
        if self._waits:
            self._waits = False
            self._save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step != trainer.max_steps:
            self._leave()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # The step's row is in the file before the state that is past it, or a kill in between would cost it. Lightning
        # writes the same row once more after this hook, and to the other loggers then alone.
        batch = trainer.fit_loop.epoch_loop.batch_progress.current
        processed: int = batch.processed  # type: ignore[attr-defined]  # Lightning declares the class's base
        if trainer.training and processed > batch.completed:
            connector, step = trainer._logger_connector, trainer.fit_loop.epoch_loop._batches_that_stepped
            for logger in trainer.loggers if connector.should_update_logs else []:
                if isinstance(logger, MetricsFile):
                    row = {name: float(value) for name, value in connector.metrics["log"].items()}
                    logger.log_metrics({**row, "epoch": trainer.current_epoch}, step)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._saved_step != trainer.global_step:
            self._save(trainer)

    def _save(self, trainer: pl.Trainer) -> None:
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]  # Lightning sets it, and declares it not
            self._saved_step = trainer.global_step
            trainer.save_checkpoint(self.file)

    def _leave(self) -> None:
        if self._stopping:
            raise Interrupted

    def _is_asked(self, trainer: pl.Trainer) -> bool:
        asked = self.signals.asked is not None
        return trainer.strategy.reduce_boolean_decision(asked, all=False) if trainer.world_size > 1 else asked
