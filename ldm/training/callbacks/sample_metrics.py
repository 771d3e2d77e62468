"""Metrics of sampled pictures at every validation, for the curves and for ModelCheckpoint."""

import math
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from basicsr.data.pair_pool import Pair
from basicsr.metrics.measure import measure
from basicsr.utils import checks
from basicsr.utils.ranges import from_pm1
from basicsr.utils.rng import torch_rng
from ldm.evaluation.measure.restore import sample_frames
from ldm.training.callbacks.isolated import isolated

LOGGED = ("psnr_y", "ssim_y", "edge_f1", "edge_psnr")


class SampleMetrics(Callback):
    """At every validation samples the first validation pairs, with fixed noise, and measures them.

    Logs the means as val/psnr_y, val/ssim_y, val/edge_f1 and val/edge_psnr (see `basicsr.metrics.measure`), before
    ModelCheckpoint looks for what it monitors. Several processes share the pictures.

    Args:
        max_images: pictures to sample.
        steps: DDIM steps; few, for speed: values are comparable along a training, not with those of other samplers.
        border: pixels to cut off before measuring; the scale factor by habit.

    Raises:
        FieldError: a number out of range.
    """

    def __init__(self, max_images: int = 4, steps: int = 10, border: int = 4) -> None:
        self.max_images = checks.whole_number("max_images", max_images, 1)
        self.steps = checks.whole_number("steps", steps, 1)
        self.border = checks.whole_number("border", border, 0)
        self._pairs: list[Pair] = []

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._pairs = []

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Pair, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        share = -(-self.max_images // trainer.world_size)
        wanted = share - sum(map(len, self._pairs))
        if wanted > 0:
            self._pairs.append(batch[:wanted])

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        values: dict[str, list[float]] = {name: [] for name in LOGGED}
        with isolated(trainer, pl_module):
            for index, pair in enumerate(self._pairs):
                rng = torch_rng(pl_module.device, "sample metrics", index)
                sr_pm1 = sample_frames(pl_module, pair.lq_pm1, self.steps, rng)
                for sr, gt in zip(*(from_pm1(image.float().cpu()) for image in (sr_pm1, pair.gt_pm1)), strict=True):
                    measured = measure(sr, gt, self.border)
                    for name in LOGGED:
                        values[name].append(measured[name])
        self._pairs = []
        means = {f"val/{name}": sum(each) / len(each) for name, each in values.items() if each}
        defined = {name: mean for name, mean in means.items() if not math.isnan(mean)}
        pl_module.log_dict(defined, sync_dist=True)
