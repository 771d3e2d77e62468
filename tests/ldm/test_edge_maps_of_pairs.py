"""Edge maps from the data set's folder to the training step: through workers, crops, degradation and pool."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from torch import Tensor

from basicsr.data.pair_pool import Pair
from ldm.data.datamodule import DataModuleFromConfig

SIDE = 80  # above the smallest window of `random_size`
CALM: dict[str, Any] = {
    "resize_prob": [0, 0, 1],
    "resize_range": [0.5, 1.5],
    "gaussian_noise_prob": 1.0,
    "noise_range": [0, 0],
    "poisson_scale_range": [0.05, 2.0],
    "gray_noise_prob": 0.4,
    "jpeg_range": [100, 100],
    "second_blur_prob": 0.0,
    "resize_prob2": [0, 0, 1],
    "resize_range2": [0.6, 1.2],
    "gaussian_noise_prob2": 1.0,
    "noise_range2": [0, 0],
    "poisson_scale_range2": [0.05, 1.0],
    "gray_noise_prob2": 0.4,
    "jpeg_range2": [100, 100],
    "gt_size": 72,
}


class Matches(pl.LightningModule):
    """Notes by how much each sample's map differs from its picture's red channel, of which it is a copy."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.differences: list[float] = []
        self.order: list[str] = []

    def training_step(self, pair: Pair, batch_idx: int) -> Tensor:
        assert pair.edge_01 is not None and pair.edge_01.shape[-2:] == pair.gt_pm1.shape[-2:]
        red_01 = (pair.gt_pm1[:, :1] + 1) / 2
        self.differences += (pair.edge_01 - red_01).abs().amax((1, 2, 3)).tolist()
        self.order += pair.paths
        loss: Tensor = self.layer(torch.ones(1, 1)).sum()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("random_size", [False, True])
def test_map_and_picture_never_part(tmp_path: Path, random_size: bool) -> None:
    rng = np.random.default_rng(0)
    for folder in ("pictures", "maps"):
        (tmp_path / folder).mkdir()
    for i in range(6):
        pixels = rng.integers(0, 256, (100, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{i}.png")
        Image.fromarray(pixels[..., 0]).save(tmp_path / "maps" / f"{i}.png")
    params = {"gt_path": str(tmp_path / "pictures"), "edge_map_path": str(tmp_path / "maps"), "crop_size": SIDE}
    target = "basicsr.data.realesrgan_dataset.RealESRGANDataset"
    data = DataModuleFromConfig(
        batch_size=2,
        num_workers=0,
        degradation=CALM,
        use_usm=False,
        random_size=random_size,
        train={"target": target, "params": {**params, "queue_size": 4, "use_rot": True}},
    )
    model = Matches()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=20,
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(model, datamodule=data)
    assert len(model.differences) == 40 and max(model.differences) < 1e-6
    assert len({tuple(model.order[i : i + 2]) for i in range(0, 40, 2)}) > 8  # the pool mixes batches
