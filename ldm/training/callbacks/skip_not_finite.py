"""Steps whose loss or gradient is not finite leave no trace in the weights."""

import logging
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from torch.nn.utils import get_total_norm

from basicsr.data.pair_pool import Pair
from basicsr.utils import checks
from basicsr.utils.errors import UserError
from basicsr.utils.files import OutputError
from ldm.modules.sharded_tensors import whole

log = logging.getLogger(__name__)


class SkipNotFinite(Callback):
    """Skips steps whose loss or gradient holds NaN or infinity, counts them, and gives up after many in a row.

    Logs the number of them so far as `train/skipped_steps`, from the first one on, and appends the pictures of each to
    `skipped_steps.txt` in the run's folder: step, process, what was not finite, path. Several processes skip together.
    Of several optimisers (the second stage has two) those skip whose gradient is at fault, and the step counts once.
    In 16-mixed precision a gradient that overflows is what the loss's scale is lowered by: such a step counts too.

    Args:
        patience: steps skipped one after the other that end the training.

    Raises:
        FieldError: a number below 1.
        UserError: `patience` steps were skipped in a row; checkpoints hold the weights from before them.
    """

    def __init__(self, patience: int = 20) -> None:
        self.patience = checks.whole_number("patience", patience, 1)
        self.skipped = 0
        self._in_a_row = 0
        self._paths: list[str] = []  # since the last optimiser step
        self._losses: list[Tensor] = []  # since then, too
        self._reason = ""

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Pair, batch_idx: int
    ) -> None:
        self._paths += getattr(batch, "paths", ())

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        drawn = getattr(getattr(pl_module, "latent_pool", None), "drawn", ())  # those of a pool came earlier
        self._paths += [path for path in dict.fromkeys(drawn) if path not in self._paths]
        self._losses.append(loss.detach())

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        finite = [
            torch.stack(self._losses).isfinite().all(),
            whole(get_total_norm(gradients, float("inf"))).to(self._losses[0].device).isfinite(),
        ]
        loss_is_finite, gradient_is_finite = torch.stack(finite).tolist()  # one wait for the device
        reason = "" if loss_is_finite and gradient_is_finite else "gradient" if loss_is_finite else "loss"
        bad = bool(reason)
        if trainer.world_size > 1:
            bad = trainer.strategy.reduce_boolean_decision(bad, all=False)
            reason = reason or ("another process" if bad else "")
        if bad:  # without a gradient an optimiser leaves a weight and its moments as they are
            optimizer.zero_grad(set_to_none=True)
        self._reason = self._reason or reason  # one step may be of several optimisers: any of them may be at fault

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Pair, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches and not trainer.is_last_batch:
            return
        self._in_a_row = self._in_a_row + 1 if self._reason else 0
        if self._reason:
            self.skipped += 1
            self._note(trainer)
        self._paths, self._losses, self._reason = [], [], ""
        if self.skipped:
            pl_module.log("train/skipped_steps", float(self.skipped))
        if self._in_a_row >= self.patience:
            raise UserError(
                f"the loss or its gradient was not finite {self._in_a_row} steps in a row, up to step "
                f"{trainer.global_step}: start from an earlier checkpoint with a smaller model.base_learning_rate; "
                f"the pictures are listed in {self._file(trainer)}"
            )

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped, "in_a_row": self._in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped, self._in_a_row = state_dict["skipped"], state_dict["in_a_row"]

    def _note(self, trainer: pl.Trainer) -> None:
        """Append the step's pictures to the list: whole lines, which several processes may append at once."""
        head = f"{trainer.global_step}\t{trainer.global_rank}\t{self._reason}\t"
        try:
            with self._file(trainer).open("a", encoding="utf-8") as file:
                file.write("".join(f"{head}{path}\n" for path in self._paths or [""]))
        except OSError as error:
            raise OutputError(self._file(trainer), error) from error
        if self._in_a_row == 1:
            log.warning(
                "the %s is not finite at step %d: the step is skipped and its pictures are listed in %s",
                self._reason,
                trainer.global_step,
                self._file(trainer),
            )

    @staticmethod
    def _file(trainer: pl.Trainer) -> Path:
        return Path(trainer.default_root_dir) / "skipped_steps.txt"
