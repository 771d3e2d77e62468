"""Whether a model that is given edges uses them."""

import logging
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from basicsr.data.pair_pool import Pair
from basicsr.utils import checks
from ldm.models.diffusion.edge_condition import FIRST_CONVOLUTION
from ldm.training.callbacks.isolated import example_pair, isolated
from ldm.training.loggers import read_metrics
from ldm.training.plots import save_edge_monitor

log = logging.getLogger(__name__)

SAMPLES = 4  # of the example pair: a look costs 8 passes of the U-Net on so many


class EdgeMonitorCallback(Callback):
    """Watches the edge input of a model with an edge condition, under `edge_monitor/…` and in edge_monitor.png.

    weight_picture, weight_edges, weight_ratio: the norms of the time-aware encoder's first convolution over the input
        channels of z_lq and of the edges, and the second over the first; gradient_… the same of its gradient.
    effect: how much the U-Net's output changes, on average, when the maps of a fixed pair are emptied; gain: by how
        much that raises its mean squared error, above 0 where the maps help (`edge_effect`).

    Args:
        check_frequency: steps from one look to the next.
        log_gradients, log_weights: whether to log those norms.

    Raises:
        FieldError: `check_frequency` is below 1.
    """

    def __init__(self, check_frequency: int = 100, log_gradients: bool = True, log_weights: bool = True) -> None:
        self.check_frequency = checks.whole_number("check_frequency", check_frequency, 1)
        self.log_gradients = checks.switch("log_gradients", log_gradients)
        self.log_weights = checks.switch("log_weights", log_weights)
        self._gradients: dict[str, float] = {}
        self._last_step = -1
        self._pair: Pair | None = None  # fixed, so that the curve shows the model's changes alone
        self._effect: dict[str, float] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._last_step = trainer.global_step
        if pl_module.edge_condition is None:
            log.warning(
                "edge_monitor: this model sees no edges, there is nothing to watch; "
                "model.params.structcond_stage_config.params.in_channels: 8 gives it some"
            )

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        if self.log_gradients and self._watches(trainer, pl_module) and self._is_due(trainer.global_step + 1):
            weight = _first_weight(pl_module)
            self._gradients = {} if weight.grad is None else _norms("gradient", weight.grad, pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        new, self._last_step = step != self._last_step, step  # several batches share a step when gradients accumulate
        if not (new and self._is_due(step) and self._watches(trainer, pl_module)):
            return
        values = {**self._gradients, **self._measure(trainer, pl_module)}
        if self.log_weights:
            values |= _norms("weight", _first_weight(pl_module).detach(), pl_module)
        self._gradients = {}
        for logger in trainer.loggers:
            # The row of the step that has just been done, which Lightning counts from 0.
            logger.log_metrics({f"edge_monitor/{name}": value for name, value in values.items()}, step=step - 1)

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        self._draw(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._draw(trainer, pl_module)
        if self._effect:
            log.info(
                "edge_monitor: emptying the edge maps of a fixed pair changes the U-Net's output by %.3g on average "
                "and raises its mean squared error by %.3g",
                *self._effect.values(),
            )

    def _is_due(self, step: int) -> bool:
        return step == 1 or step % self.check_frequency == 0

    @staticmethod
    def _watches(trainer: pl.Trainer, pl_module: Any) -> bool:
        return trainer.is_global_zero and pl_module.edge_condition is not None

    def _measure(self, trainer: pl.Trainer, pl_module: Any) -> dict[str, float]:
        if self._pair is None:
            self._pair = example_pair(trainer, pl_module)[:SAMPLES]
        with isolated(trainer, pl_module):
            self._effect = pl_module.edge_effect(self._pair)
        return self._effect

    def _draw(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if self._watches(trainer, pl_module):
            folder = Path(trainer.default_root_dir)
            save_edge_monitor(read_metrics(folder / "metrics.csv"), folder / "edge_monitor.png")


def _first_weight(pl_module: Any) -> Tensor:
    weight: Tensor = pl_module.get_parameter(f"{FIRST_CONVOLUTION}.weight")
    return weight


def _norms(name: str, weight: Tensor, pl_module: Any) -> dict[str, float]:
    """Of a weight or gradient (out, channels, 3, 3), over the channels of the picture and those of the edges."""
    own = pl_module.structure.picture_channels
    edges = float(weight[:, own:].norm())
    if own == 0:
        return {f"{name}_edges": edges}
    picture = float(weight[:, :own].norm())
    ratio = {f"{name}_ratio": edges / picture} if picture > 0 else {}
    return {f"{name}_picture": picture, f"{name}_edges": edges, **ratio}
