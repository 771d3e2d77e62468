"""What callbacks that look at the model in the midst of training share."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytorch_lightning as pl
import torch

from basicsr.data.pair_pool import Pair


def example_pair(trainer: pl.Trainer, pl_module: pl.LightningModule) -> Pair:
    """The data module's fixed pair, on the model's device."""
    pair: Pair = trainer.datamodule.example_pair(pl_module.device)  # type: ignore[attr-defined]  # Lightning's class has no example_pair
    return pair


@contextmanager
def isolated(trainer: pl.Trainer, pl_module: pl.LightningModule) -> Iterator[None]:
    """No gradients, the trainer's precision, and the global random state afterwards as before."""
    devices = [pl_module.device] if pl_module.device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices), trainer.precision_plugin.forward_context():
        yield
