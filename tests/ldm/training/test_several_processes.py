"""Two processes against one: the same samples, each with its own noise, in one batch of two or two of one."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.strategies import DDPStrategy, Strategy
from reference.models import Pairs, pair, stage1, trainer
from torch import Tensor
from torch.multiprocessing.spawn import spawn
from torch.utils.data import DataLoader, Sampler

from basicsr.data.pair_pool import Pair
from basicsr.utils.rng import torch_rng
from ldm.models.diffusion.ddpm import LatentDiffusionSRTextWT
from ldm.modules.sharded_tensors import whole
from ldm.training.callbacks.skip_not_finite import SkipNotFinite
from ldm.training.sharded import ShardedStrategy

STEPS = 20
STRATEGIES: dict[str, type[DDPStrategy]] = {"ddp": DDPStrategy, "fsdp": ShardedStrategy}


class OwnNoise(LatentDiffusionSRTextWT):
    """Draws every sample's noise and timestep by the sample, not by the process."""

    def training_step(self, pair: Pair, batch_idx: int) -> Tensor:
        losses = [
            self._step(pair[place : place + 1], torch_rng(self.device, "sample", self.global_step, pair.paths[place]))[
                0
            ]
            for place in range(len(pair))
        ]
        return torch.stack(losses).mean()


class Rest(Sampler[int]):
    """The batches that are still to come, in a run that was resumed too."""

    def __init__(self, data: pl.LightningDataModule) -> None:
        self.data = data

    def __len__(self) -> int:
        return STEPS

    def __iter__(self) -> Iterator[int]:
        assert self.data.trainer is not None
        yield from range(self.data.trainer.fit_loop.total_batch_idx + 1, STEPS)


class SharedPairs(Pairs):
    """Each process takes its share of every batch."""

    def train_dataloader(self) -> DataLoader[Any]:
        batches: Any = [vars(pair(index)) for index in range(STEPS)]
        return DataLoader(batches, batch_size=None, sampler=Rest(self))

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> Pair:
        assert self.trainer is not None
        pair = super().on_after_batch_transfer(batch, dataloader_idx)
        return pair[list(range(self.trainer.global_rank, len(pair), self.trainer.world_size))]


class Save(Callback):
    """The first step's gradients, and the state half way, beside a file."""

    def __init__(self, file: Path) -> None:
        self.gradients, self.half = file.with_suffix(".gradients"), file.with_suffix(".half")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Pair, batch_idx: int
    ) -> None:
        if trainer.global_step == STEPS // 2:
            trainer.save_checkpoint(self.half)

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        if trainer.global_step == 0:
            gradients = {name: whole(p.grad) for name, p in pl_module.named_parameters() if p.grad is not None}
            if trainer.is_global_zero:
                torch.save(gradients, self.gradients)


def fit(file: Path, strategy: str, start: Path | None = None) -> None:
    """Train in this process, which may be one of several, and save `file`, its first gradients beside it."""
    torch.manual_seed(0)
    model = stage1(unfrozen_diff=True, edge_loss_weight=0.1, use_ema=True, learning_rate=1e-3)
    model.__class__ = OwnNoise
    how: Strategy | str = STRATEGIES[strategy]() if strategy in STRATEGIES else strategy
    run = trainer(
        file.parent, STEPS, devices=int(os.environ.get("WORLD_SIZE", 1)), strategy=how, use_distributed_sampler=False,
        callbacks=[SkipNotFinite(), Save(file)], gradient_clip_val=0.5,
        limit_val_batches=1, check_val_every_n_epoch=None, val_check_interval=8,
    )  # fmt: skip
    run.fit(model, SharedPairs(STEPS), ckpt_path=start, weights_only=True)
    run.save_checkpoint(file)


Job = tuple[Path, str, Path | None]  # arguments of `fit`


def fit_all(rank: int, port: int, jobs: list[Job]) -> None:
    """In one of two processes, as torchrun starts them."""
    told = {"WORLD_SIZE": 2, "RANK": rank, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in told.items()}, TORCHELASTIC_RUN_ID="test")
    for job in jobs:
        fit(*job)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of 20 steps: on one process, on two, and on one number of them and then the other."""
    folder = tmp_path_factory.mktemp("runs")
    fit(folder / "one.ckpt", "auto")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    jobs = [
        (folder / "ddp.ckpt", "ddp", None),
        (folder / "fsdp.ckpt", "fsdp", None),
        (folder / "one_then_two.ckpt", "fsdp", folder / "one.half"),
    ]
    spawn(fit_all, (port, jobs), nprocs=2)
    fit(folder / "two_then_one.ckpt", "auto", folder / "fsdp.half")
    return folder


def furthest(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """The largest difference of a tensor, relative to its norm; but for those that are rounding errors throughout.

    The gradient of a bias before a normalisation, say, is zero.
    """
    assert ours.keys() == theirs.keys()
    floor = 1e-4 * float(torch.stack([value.double().norm() for value in theirs.values()]).norm())
    differences = (
        float((ours[name].double() - value.double()).norm()) / max(floor, float(value.double().norm()))
        for name, value in theirs.items()
    )
    return max(differences)


def load(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(file, weights_only=True)
    return content


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_gradients_are_those_of_one_process(runs: Path, strategy: str) -> None:
    assert furthest(load(runs / f"{strategy}.gradients"), load(runs / "one.gradients")) < 1e-3


@pytest.mark.parametrize("name", [*STRATEGIES, "one_then_two", "two_then_one"])
def test_weights_are_those_of_one_process(runs: Path, name: str) -> None:
    """AdamW's first steps follow a gradient's sign, be it a rounding error's."""
    assert furthest(load(runs / f"{name}.ckpt")["state_dict"], load(runs / "one.ckpt")["state_dict"]) < 0.01
