"""Labelled pictures of the training, now and then."""

from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger

from basicsr.data.pair_pool import Pair
from basicsr.utils import checks
from basicsr.utils.files import write_whole
from basicsr.utils.grid import labelled_grid, png_bytes
from ldm.training.callbacks.isolated import example_pair, isolated

LABELS = {
    "lq": "LQ (input)",
    "gt": "GT",
    "x0_pred": "predicted x0",
    "sample": "sample",
    "edge_gt": "edges of GT",
    "edge_pred": "edges of x0",
    "edge_weight": "weight over GT",
    "edge_error": "weighted error",
}


class ImageLogger(Callback):
    """Writes a labelled grid (LQ, GT, predicted x0, sample, edges) now and then, to disk and to the logger.

    Args:
        batch_frequency: steps from one grid to the next.
        max_images: rows of a grid at most.
        increase_log_steps: also at the steps 1, 2, 4, 8, … below `batch_frequency`.

    Raises:
        FieldError: a number below 1.
    """

    def __init__(self, batch_frequency: int = 1000, max_images: int = 4, increase_log_steps: bool = False) -> None:
        self.batch_frequency = checks.whole_number("batch_frequency", batch_frequency, 1)
        self.max_images = checks.whole_number("max_images", max_images, 1)
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
            self._log(trainer, pl_module, example_pair(trainer, pl_module), "final")

    def _is_due(self, step: int) -> bool:
        early = self.increase_log_steps and 0 < step < self.batch_frequency and step & (step - 1) == 0
        return step > 0 and (step % self.batch_frequency == 0 or early)

    def _log(self, trainer: pl.Trainer, pl_module: Any, pair: Pair, name: str) -> None:
        if not trainer.is_global_zero:
            return
        with isolated(trainer, pl_module):
            images = pl_module.log_images(pair, min(self.max_images, len(pair)))
        grid = labelled_grid({LABELS.get(label, label): image for label, image in images.items()})
        write_whole(Path(trainer.default_root_dir) / "images" / f"{name}.png", png_bytes(grid))
        key = f"images/{name.split('/')[0]}"
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image(key, [grid], step=trainer.global_step)
            elif isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(key, np.asarray(grid), trainer.global_step, dataformats="HWC")
