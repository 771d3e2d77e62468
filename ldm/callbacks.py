"""What happens around the training steps: pictures, probe, progress, and stopping without losing anything."""

import logging
import math
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning.callbacks import Callback, ModelCheckpoint, ProgressBar
from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger
from tqdm import tqdm

from basicsr.data.pair_pool import Pair
from basicsr.utils.errors import UserError
from ldm.plots import labelled_grid

log = logging.getLogger(__name__)


class ImageLogger(Callback):
    """Writes a labelled grid (LQ, GT, predicted x0, sample, edges) now and then, to disk and to the logger.

    Args:
        batch_frequency: steps from one grid to the next.
        max_images: rows of a grid at most.
        increase_log_steps: also at the steps 1, 2, 4, 8, … below `batch_frequency`.

    Raises:
        UserError: a number below 1.
    """

    def __init__(self, batch_frequency: int = 1000, max_images: int = 4, increase_log_steps: bool = False) -> None:
        for name, value in (("batch_frequency", batch_frequency), ("max_images", max_images)):
            if value < 1:
                raise UserError(f"lightning.callbacks image logger: {name} is {value}: it must be at least 1")
        self.batch_frequency = batch_frequency
        self.max_images = max_images
        self.increase_log_steps = increase_log_steps
        self._last_step = -1

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Pair, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step != self._last_step and self._is_due(step):  # several batches share a step when gradients accumulate
            self._log(trainer, pl_module, batch, f"train/step-{step:06d}")
        self._last_step = step

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            self._log(trainer, pl_module, _example_pair(trainer, pl_module), "final")

    def _is_due(self, step: int) -> bool:
        early = self.increase_log_steps and 0 < step < self.batch_frequency and step & (step - 1) == 0
        return step > 0 and (step % self.batch_frequency == 0 or early)

    def _log(self, trainer: pl.Trainer, pl_module: Any, pair: Pair, name: str) -> None:
        if not trainer.is_global_zero:
            return
        with undisturbed(trainer, pl_module):
            images = pl_module.log_images(pair, min(self.max_images, len(pair)))
        grid = labelled_grid(images)
        file = Path(trainer.default_root_dir) / "images" / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        grid.save(file)
        key = f"images/{name.split('/')[0]}"
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image(key, [grid], step=trainer.global_step)
            elif isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(key, np.asarray(grid), trainer.global_step, dataformats="HWC")


class EdgeProbe(Callback):
    """Measures the edge loss on the first validation batch before and after training, and says how far it fell."""

    def __init__(self) -> None:
        self.start: dict[str, float] = {}
        self.end: dict[str, float] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero and not self.start:  # a resumed run compares with its very beginning
            self.start = self._measure(trainer, pl_module)

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

    @staticmethod
    def _measure(trainer: pl.Trainer, pl_module: Any) -> dict[str, float]:
        with undisturbed(trainer, pl_module):
            return {key: float(value) for key, value in pl_module.edge_probe(_example_pair(trainer, pl_module)).items()}


class WholeFiles(TorchCheckpointIO):
    """Writes a checkpoint beside its place and then renames it: a former one is there until the new one is whole."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """As Lightning calls it. Raises UserError where the disk is full or the folder cannot be written."""
        target = Path(path)
        draft = target.with_name(target.name + ".part")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            torch.save(checkpoint, draft)
            draft.replace(target)
        except (OSError, RuntimeError) as error:  # torch's writer raises the latter for a full disk
            with suppress(OSError):
                draft.unlink()
            reason = getattr(error, "strerror", None) or "is the disk full?"
            kept = "the former one is as it was" if target.exists() else "there is no former one"
            raise UserError(
                f"the checkpoint {target} cannot be written ({reason}); {kept}. Make room, then --resume the run"
            ) from error


class Interrupted(Exception):  # noqa: N818  (no error: somebody asked for it)
    """Training was asked to stop, and has stopped with everything saved."""


class KeepLast(Callback):
    """Writes `last.ckpt` when training ends, and when Ctrl-C (SIGINT) or SIGTERM asks it to stop after the step.

    A second signal stops at once. Several processes agree on the step after which they stop.

    Raises:
        Interrupted: after the checkpoint is written.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.asked = False
        self._stopping = False
        self._saved_step = -1

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Lightning has just put its own handlers in place, and puts the original ones back at the end.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step_done = (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch
        asked = self.asked
        if trainer.world_size > 1:
            asked = trainer.strategy.reduce_boolean_decision(asked, all=False)
        if not step_done or self._stopping:
            return
        self._stopping = asked
        # The last step's state is saved here and not when training has ended: by then Lightning counts the epoch as
        # finished, wherever it was, and a resumed run would start the next one.
        if asked or trainer.should_stop or trainer.global_step == trainer.max_steps:
            self._save(trainer)

    # Lightning writes a step's numbers to the loggers after on_train_batch_end: leave at the first hook that follows.
    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._leave()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._leave()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step != trainer.max_steps:
            self._leave()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._saved_step != trainer.global_step:
            self._save(trainer)

    def _save(self, trainer: pl.Trainer) -> None:
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._saved_step = trainer.global_step
            trainer.save_checkpoint(self.file)

    def _leave(self) -> None:
        if self._stopping:
            raise Interrupted

    def _on_signal(self, number: int, frame: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        log.info("stopping after this step (once more to stop at once, without saving)")


class StepCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint, which leaves the checkpoint at the end of training to `KeepLast`."""

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Nothing: see `KeepLast.on_train_batch_end`."""


class StepProgress(ProgressBar):
    """One bar over all steps; where the output is no terminal, a line now and then, ever more rarely."""

    def __init__(self) -> None:
        super().__init__()
        self._bar: tqdm | None = None
        self._enabled = True
        self._warned = False
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
            size = {"ncols": width, "nrows": height}
            self._bar = tqdm(total=self._total(trainer), initial=self._step, unit="step", smoothing=0.1, **size)

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
        if news and not self._warned and not all(map(math.isfinite, last_losses(trainer).values())):
            self._warned = True
            log.warning(
                "the loss is no finite number any more at step %d: stop (Ctrl-C), and start from an earlier "
                "checkpoint with a smaller model.base_learning_rate",
                self._step,
            )

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


def _example_pair(trainer: pl.Trainer, pl_module: pl.LightningModule) -> Pair:
    return trainer.datamodule.example_pair(pl_module.device)  # type: ignore[attr-defined]


@contextmanager
def undisturbed(trainer: pl.Trainer, pl_module: pl.LightningModule) -> Iterator[None]:
    """No gradients, the trainer's precision, and the global random state afterwards as before."""
    devices = [pl_module.device] if pl_module.device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices), trainer.precision_plugin.forward_context():
        yield
