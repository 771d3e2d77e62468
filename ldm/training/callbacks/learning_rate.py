"""The learning rate of a resumed run is the one that its config says now."""

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback


class UseLearningRate(Callback):
    """Gives the optimiser the model's `learning_rate` again after Lightning has restored a checkpoint's."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.lr_scheduler_configs:  # a scheduler goes on with its own
            return
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = pl_module.learning_rate
