"""A loss or a gradient that is not finite leaves no trace in the weights, and ends the training where it stays."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from basicsr.data.pair_pool import Pair
from basicsr.utils.errors import UserError
from ldm.training.callbacks.checkpoint_io import AtomicCheckpointIO, NotFiniteError
from ldm.training.callbacks.skip_not_finite import SkipNotFinite
from ldm.training.loggers import MetricsFile, read_metrics


class Model(pl.LightningModule):
    """Its loss, or its gradient alone, is not finite in some batches."""

    def __init__(self, losses: set[int], gradients: set[int]) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2))
        self.losses, self.gradients = losses, gradients

    def training_step(self, batch: Pair, batch_idx: int) -> Tensor:
        loss = (self.weight**2).sum()
        if batch_idx in self.losses:
            return loss * float("nan")
        # The square root's slope at 0 is infinite.
        return loss + torch.sqrt(0 * self.weight).sum() if batch_idx in self.gradients else loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.1)


class Data(pl.LightningDataModule):
    """One picture a batch."""

    def __init__(self, batches: int) -> None:
        super().__init__()
        self.batches = batches

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(range(self.batches))  # type: ignore[arg-type]  # takes any sequence, asks for a Dataset

    def on_after_batch_transfer(self, batch: Tensor, dataloader_idx: int) -> Pair:
        return Pair(torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2), (f"picture{int(batch)}.png",))


def fit(folder: Path, model: Model, callback: SkipNotFinite, batches: int) -> None:
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        callbacks=[callback],
        logger=[MetricsFile(folder / "metrics.csv")],
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        default_root_dir=folder,
    )
    trainer.fit(model, datamodule=Data(batches))


def test_a_bad_step_is_skipped_counted_and_listed(tmp_path: Path) -> None:
    bad = Model({1}, {3})
    fit(tmp_path, bad, SkipNotFinite(), 5)
    good = Model(set(), set())
    fit(tmp_path / "good", good, SkipNotFinite(), 3)
    assert torch.equal(bad.weight, good.weight)  # as if the two batches had not been
    listed = (tmp_path / "skipped_steps.txt").read_text().splitlines()
    assert [line.split("\t") for line in listed] == [
        ["2", "0", "loss", "picture1.png"],
        ["4", "0", "gradient", "picture3.png"],
    ]
    counts = [row.get("train/skipped_steps") for row in read_metrics(tmp_path / "metrics.csv")]
    assert counts == [1, 1, 2, 2]  # from the first one on
    assert not (tmp_path / "good" / "skipped_steps.txt").exists()


def test_many_in_a_row_end_it(tmp_path: Path) -> None:
    model = Model({1, 3, 4, 5}, set())
    with pytest.raises(UserError, match="3 steps in a row, up to step 6"):
        fit(tmp_path, model, SkipNotFinite(patience=3), 9)
    assert bool(model.weight.isfinite().all())


def test_weights_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    file = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"state_dict": {"a": torch.zeros(2)}}, file)
    with pytest.raises(NotFiniteError, match="the weights are not finite any more .*is as it was"):
        AtomicCheckpointIO().save_checkpoint({"state_dict": {"a": torch.tensor([0, float("inf")])}}, file)
    assert torch.load(file, weights_only=True)["state_dict"]["a"].tolist() == [0, 0]


def test_no_room_is_noticed_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=1))
    monkeypatch.setattr(torch, "save", lambda *_: pytest.fail("written"))
    with pytest.raises(UserError, match="it takes 0.00 GB and 0.00 GB are free.*there is no former one"):
        AtomicCheckpointIO().save_checkpoint({"state_dict": {"a": torch.zeros(2)}}, tmp_path / "last.ckpt")
