"""A training that takes milliseconds a step and has what a real one has: degradations, pool, EMA, validation."""

import mmap
import os
import shutil
import signal
import struct
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn

from basicsr.data.pair_pool import Pair
from basicsr.data.realesrgan_dataset import RealESRGANDataset
from basicsr.utils.rng import torch_rng
from ldm.modules.ema import LitEma

ROOT = Path(__file__).parents[2]
BATCHES = 4  # an epoch's, on one process
PHASES = ("start-up", "step", "last batch", "validation", "saving")
FORMAT = f"{1 + len(PHASES)}i"  # the phase, and how often each was entered

CONFIG = f"""
base: {ROOT}/configs/demo/photographs.yaml
degradation: {{{{gt_size: 16}}}}
model: {{{{target: faults.toy.Toy, base_learning_rate: 0.01}}}}
data:
  params:
    batch_size: 1
    num_workers: 0
    train: {{{{params: {{{{gt_path: pictures, crop_size: 16, gt_size: 16, queue_size: 2}}}}}}}}
    validation: {{{{params: {{{{gt_path: pictures, crop_size: 16, gt_size: 16}}}}}}}}
lightning:
  callbacks: {{{{phases: {{{{target: faults.toy.Phases, params: {{{{file: {{phases}}}}}}}}}}}}}}
  modelcheckpoint: {{{{params: {{{{every_n_train_steps: 5}}}}}}}}
  trainer: {{{{accelerator: cpu, devices: {{processes}}, strategy: {{strategy}}, max_steps: {{steps}},
    limit_val_batches: 1, log_every_n_steps: 1, enable_progress_bar: false}}}}
"""  # filled in by `format`


class Toy(pl.LightningModule):
    """Learns GT from LQ with noise that depends on the place, as the real one's does: a wrong counter shows."""

    def __init__(
        self, learning_rate: float = 0.01, noise: float = 0.1, fails_on: int | None = None, loses: str | None = None
    ) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        self.noise = noise
        self.fails_on = fails_on  # the process that breaks down at step 3
        self.loses = loses  # a folder that vanishes then
        self.net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.SiLU(), nn.Conv2d(4, 3, 3, padding=1))
        self.ema = LitEma(self.net)

    def training_step(self, pair: Pair, batch_idx: int) -> Tensor:
        place = (torch.initial_seed(), self.global_rank, self.current_epoch, batch_idx)
        if self.global_step == 3 and self.fails_on == self.global_rank:
            raise RuntimeError("broken")
        if self.global_step == 3 and self.loses is not None:
            for path in Path(self.loses).iterdir():
                shutil.rmtree(path)
        noise = torch.randn(pair.gt_pm1.shape, generator=torch_rng(self.device, "toy", *place))
        loss: Tensor = (self.net(pair.lq_pm1) + self.noise * noise - pair.gt_pm1).square().mean()
        self.log("train/loss", loss, batch_size=len(pair))
        return loss

    def validation_step(self, pair: Pair, batch_idx: int) -> None:
        loss = (self.net(pair.lq_pm1) - pair.gt_pm1).square().mean()
        self.log("val/loss", loss, batch_size=len(pair), sync_dist=True)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.ema.update(self.net)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.net.parameters(), lr=self.learning_rate)


class DyingPictures(RealESRGANDataset):
    """Pictures whose fifth kills the worker that reads it, as a system without memory does."""

    died_of: signal.Signals = signal.SIGKILL

    def __getitem__(self, draw: int) -> dict[str, Any]:
        if draw >= 4:
            os.kill(os.getpid(), self.died_of)
        return super().__getitem__(draw)


class PicturesWithoutSharedMemory(DyingPictures):
    """The same by the signal that a full /dev/shm sends."""

    died_of = signal.SIGBUS


class Phases(Callback):
    """Tells in a few shared bytes what the first process is at."""

    def __init__(self, file: str) -> None:
        self.file = Path(file)
        self._shared: mmap.mmap | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            with self.file.open("rb+") as file:
                self._shared = mmap.mmap(file.fileno(), struct.calcsize(FORMAT))

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Pair, batch_idx: int
    ) -> None:
        self._enter("last batch" if batch_idx + 1 == trainer.num_training_batches else "step")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._enter("validation")

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._enter("saving")

    def _enter(self, phase: str) -> None:
        if self._shared is not None:
            values = list(struct.unpack(FORMAT, self._shared[:]))
            values[0] = PHASES.index(phase)
            values[1 + values[0]] += 1
            self._shared[:] = struct.pack(FORMAT, *values)
