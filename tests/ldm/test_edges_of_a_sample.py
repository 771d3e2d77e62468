"""Map and picture are of one sample, through workers' crops, degradation and pool; and any factor comes to size."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from test_edge_maps_of_pairs import CALM
from torch import Tensor

from basicsr.data.pair_pool import Pair
from ldm.data.datamodule import DataModuleFromConfig
from ldm.models.diffusion.edge_condition import EdgeCondition

SIDE, COUNT = 32, 8
SHARP = {"kernel_list": ["iso"], "kernel_prob": [1], "sinc_prob": 0, "blur_sigma": [0.2, 0.3], "final_sinc_prob": 0}
TARGET = "basicsr.data.realesrgan_dataset.RealESRGANDataset"


def number_of_colour(picture_pm1: Tensor) -> int:
    """The number that a picture's green says."""
    green_01 = (float(picture_pm1[1].mean()) + 1) / 2
    return round(green_01 * 255 / 8) - 8


def number_of_map(map_pm1: Tensor) -> int:
    """The number that the place of a map's line says: the step lies between columns 3 n + 4 and 3 n + 5."""
    columns = (map_pm1[0] > 0).sum(0)
    assert int(columns.max()) >= SIDE - 4, f"no upright line in {columns.tolist()}"
    return round((int(columns.argmax()) - 4) / 3)


def write_numbered(folder: Path) -> None:
    """COUNT pictures: an upright step from red to none at a place that says the number; green says it, too."""
    for kind in ("pictures", "maps"):
        (folder / kind).mkdir()
    for number in range(COUNT):
        pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
        pixels[..., 1] = 8 * (number + 8)
        pixels[:, : 3 * number + 5, 0] = 255
        Image.fromarray(pixels).save(folder / "pictures" / f"{number}.png")
        drawn = np.zeros((SIDE, SIDE), np.uint8)
        drawn[:, 3 * number + 4] = 255
        Image.fromarray(drawn).save(folder / "maps" / f"{number}.png")


class Numbers(pl.LightningModule):
    """Notes three numbers of every sample of a batch: of its path, its picture, and the map that a model would see."""

    def __init__(self, condition: EdgeCondition) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.condition = condition
        self.seen: list[tuple[int, int, int]] = []

    def training_step(self, pair: Pair, batch_idx: int) -> Tensor:
        maps = self.condition.map_of_pair(pair)
        for path, gt_pm1, map_pm1 in zip(pair.paths, pair.gt_pm1, maps, strict=True):
            self.seen.append((int(Path(path).stem), number_of_colour(gt_pm1), number_of_map(map_pm1)))
        loss: Tensor = self.layer(torch.ones(1, 1)).sum()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("source", ["lq", "gt", "file"])
def test_through_200_steps_of_the_pool(tmp_path: Path, source: str) -> None:
    write_numbered(tmp_path)
    params = {"gt_path": str(tmp_path / "pictures"), "crop_size": SIDE, "use_hflip": False, "queue_size": 8}
    if source == "file":
        params["edge_map_path"] = str(tmp_path / "maps")
    data = DataModuleFromConfig(
        batch_size=2,
        num_workers=0,
        degradation={**CALM, "gt_size": SIDE},
        sf=1,
        use_usm=False,
        train={"target": TARGET, "params": {**params, **SHARP}},
    )
    model = Numbers(
        EdgeCondition(source=source, generator={"gaussian_kernel_size": 1, "low_threshold": 50, "high_threshold": 100})
    )
    options: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_progress_bar", "enable_checkpointing", "enable_model_summary", "use_distributed_sampler"),
        False,
    )
    pl.Trainer(accelerator="cpu", max_steps=200, default_root_dir=tmp_path, **options).fit(model, datamodule=data)
    assert len(model.seen) == 400
    assert [sample for sample in model.seen if len(set(sample)) > 1] == []
    assert {path for path, _, _ in model.seen} == set(range(COUNT))
    batches = {tuple(path for path, _, _ in model.seen[i : i + 2]) for i in range(0, 400, 2)}
    assert len(batches) > 30  # of 56: the pool mixes them


@pytest.mark.parametrize("sf", [4, 16])
def test_any_factor_is_brought_to_size_bicubically(tmp_path: Path, sf: int) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "noise.png")
    params = {"gt_path": str(tmp_path), "crop_size": 64, "queue_size": 0}
    data = DataModuleFromConfig(
        batch_size=1,
        num_workers=0,
        degradation={**CALM, "gt_size": 64},
        sf=sf,
        use_usm=False,
        validation={"target": TARGET, "params": params},
    )
    data.setup()
    lq_pm1 = data.example_pair(torch.device("cpu")).lq_pm1
    assert lq_pm1.shape == (1, 3, 64, 64)
    # It lies in the span of the bicubic enlargements of single pixels of a picture of 64 / sf pixels.
    side = 64 // sf
    pixels = torch.eye(side**2).reshape(-1, 1, side, side)
    span = torch.nn.functional.interpolate(pixels, size=(64, 64), mode="bicubic").flatten(1).T
    inside = (lq_pm1[0].abs() < 1).all(0).flatten()  # what was clamped does not
    values = lq_pm1[0].flatten(1).T[inside]
    solution = torch.linalg.lstsq(span[inside], values).solution
    assert (span[inside] @ solution - values).abs().max() < 1e-3 < values.std()
