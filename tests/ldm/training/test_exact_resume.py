"""Stops at every kind of moment, resumed each time: the weights and the rows of an undisturbed run."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ldm.training.callbacks.checkpoint_io import AtomicCheckpointIO
from ldm.training.callbacks.checkpoints import Interrupted, KeepLast, StepCheckpoint
from ldm.training.callbacks.skip_not_finite import SkipNotFinite
from ldm.training.loggers import MetricsFile
from ldm.training.stop_signals import StopSignals

STEPS = 11  # of epochs of four batches


class Killed(BaseException):
    """As SIGKILL does it: nothing more is done."""


class StopAt(pl.Callback):
    """At the n-th of these moments: killed, or sent a SIGTERM."""

    def __init__(self, moment: int, kill: bool) -> None:
        self.left = moment
        self.kill = kill

    def _moment(self) -> None:
        self.left -= 1
        if self.left == 0 and self.kill:
            raise Killed
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGTERM)

    def on_train_batch_start(self, *_: Any) -> None:
        self._moment()

    def on_train_batch_end(self, *_: Any) -> None:
        self._moment()

    def on_validation_batch_start(self, *_: Any) -> None:
        self._moment()

    def on_validation_end(self, *_: Any) -> None:
        self._moment()

    def on_train_epoch_end(self, *_: Any) -> None:
        self._moment()


class Model(pl.LightningModule):
    """Its noise depends on the epoch and the batch, so that a wrong counter shows in the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(3))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        rng = torch.Generator().manual_seed(1000 * self.current_epoch + batch_idx)
        loss = ((self.weight - torch.randn(3, generator=rng)) ** 2).sum()
        self.log("train/loss", loss, batch_size=1)
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val/loss", self.weight.sum() + batch_idx, batch_size=1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.1)


def loader(count: int) -> DataLoader[Any]:
    return DataLoader(range(count), batch_size=1)  # type: ignore[arg-type]  # takes any sequence, asks for a Dataset


def fit(folder: Path, stop: StopAt | None = None, **options: Any) -> bool:
    """Train, or go on training; whether the end was reached."""
    last = folder / "checkpoints" / "last.ckpt"
    checkpoint = last if last.exists() else None
    step = torch.load(last, weights_only=True)["global_step"] if checkpoint else None
    saving = StepCheckpoint(
        dirpath=str(last.parent), every_n_train_steps=3, save_last=True, enable_version_counter=False
    )
    signals = StopSignals()
    callbacks = [SkipNotFinite(), saving, KeepLast(last, signals)]
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=STEPS,
        callbacks=[stop, *callbacks] if stop else callbacks,
        logger=[MetricsFile(folder / "metrics.csv", step)],
        plugins=[AtomicCheckpointIO()],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        default_root_dir=folder,
        **options,
    )
    try:
        with signals:
            trainer.fit(Model(), loader(4), loader(2), ckpt_path=checkpoint, weights_only=True)
    except (Interrupted, Killed):
        return torch.load(last, weights_only=True)["global_step"] == STEPS if last.exists() else False
    return True


def outcome(folder: Path) -> tuple[list[float], str]:
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    return state["state_dict"]["weight"].tolist(), (folder / "metrics.csv").read_text()


@pytest.mark.parametrize("kill", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="each epoch"),
        pytest.param({"val_check_interval": 2}, id="in the midst of epochs"),
        pytest.param({"check_val_every_n_epoch": 2}, id="every second epoch"),
        pytest.param({"check_val_every_n_epoch": None, "val_check_interval": 3}, id="without epochs"),
        pytest.param({"limit_val_batches": 0}, id="never"),
        pytest.param({"accumulate_grad_batches": 2}, id="accumulated"),
    ],
)
def test_stopped_twice_and_resumed(tmp_path: Path, options: dict[str, Any], kill: bool) -> None:
    assert fit(tmp_path / "straight", **options)
    for moment in range(2, 30, 3):
        folder = tmp_path / str(moment)
        done = fit(folder, StopAt(moment, kill), **options) or fit(folder, StopAt(5, kill), **options)
        assert done or fit(folder, **options)
        assert outcome(folder) == outcome(tmp_path / "straight"), moment
