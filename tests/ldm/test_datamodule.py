"""The data side: order, resuming in the middle of an epoch, fixed validation, and data sets that are too small."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from reference.recorder import DEGRADATION, SIZE, Recorder
from torch import Tensor
from torch.utils.data import Dataset

from basicsr.data.pair_pool import Pair
from basicsr.utils.errors import UserError
from ldm.data.datamodule import DataModuleFromConfig
from ldm.data.sampler import TrainingSampler


class Noise(Dataset[dict[str, Any]]):
    """Pictures of noise with RealESRGANDataset's interface, so that a sample tells its place: path = epoch/index."""

    def __init__(self, length: int, queue_size: int = 0, seed: int = 23) -> None:
        self.length = length
        self.queue_size = queue_size

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, draw: int) -> dict[str, Any]:
        kernel = torch.zeros(21, 21)
        kernel[10, 10] = 1
        gt = torch.rand(3, SIZE, SIZE, generator=torch.Generator().manual_seed(draw))
        path = "{}/{}".format(*divmod(draw, self.length))
        return {"gt": gt, "kernel1": kernel, "kernel2": kernel, "sinc_kernel": kernel, "gt_path": path}


def module(length: int = 7, queue_size: int = 0, **options: Any) -> DataModuleFromConfig:
    def role(size: int, **params: Any) -> dict[str, Any]:
        return {"target": f"{__name__}.Noise", "params": {"length": size, **params}}

    options = {"batch_size": 2, "num_workers": 0, "degradation": DEGRADATION, **options}
    data = DataModuleFromConfig(train=role(length, queue_size=queue_size), validation=role(3), **options)
    data.setup()
    return data


def fit(data: DataModuleFromConfig, steps: int, folder: Path, resume: bool = False, **options: Any) -> Recorder:
    model = Recorder()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        **options,
    )
    file = folder / "last.ckpt"
    callback = SaveAtTheEnd(file)
    trainer.callbacks.append(callback)  # type: ignore[attr-defined]  # Lightning sets it, and declares it not
    trainer.fit(model, datamodule=data, ckpt_path=file if resume else None, weights_only=True)
    return model


class SaveAtTheEnd(pl.Callback):
    """As KeepLast does: after the last batch, not after training."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step == trainer.max_steps:
            trainer.save_checkpoint(self.file)


@pytest.mark.parametrize("queue_size", [0, 4])
@pytest.mark.parametrize("first", [2, 3])  # in the middle of an epoch, and at the end of one
def test_a_resumed_run_sees_the_next_batch(tmp_path: Path, first: int, queue_size: int) -> None:
    straight = fit(module(queue_size=queue_size), 8, tmp_path).seen
    before = fit(module(queue_size=queue_size), first, tmp_path).seen
    after = fit(module(queue_size=queue_size), 8, tmp_path, resume=True).seen
    assert before + after == straight
    assert len({paths for paths, _ in straight}) == 8


def test_workers_change_nothing(tmp_path: Path) -> None:
    alone = fit(module(), 5, tmp_path).seen
    assert fit(module(num_workers=1), 5, tmp_path).seen == alone


def test_the_seed_decides_the_order(tmp_path: Path) -> None:
    runs = [fit(module(seed=seed), 3, tmp_path).seen for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def test_an_epoch_sees_every_picture_once_and_the_next_in_another_order() -> None:
    done = 0
    sampler = TrainingSampler(12, 3, seed=1, batches_done=lambda: done)
    first = list(sampler)
    done = 4
    second = list(sampler)
    assert sorted(first) == list(range(12)) and sorted(second) == list(range(12, 24))
    assert [draw - 12 for draw in second] != first


def test_ranks_share_an_epoch_evenly() -> None:
    ranks = [list(TrainingSampler(11, 2, 1, lambda: 0, rank, 2)) for rank in (0, 1)]
    assert len(ranks[0]) == len(ranks[1]) == 4
    assert len(set(ranks[0]) | set(ranks[1])) == 8


def test_validation_pairs_are_the_same_every_time(tmp_path: Path) -> None:
    data = module()
    validated = fit(data, 6, tmp_path).validated  # two epochs, two validation batches each
    assert len(validated) == 4 and validated[:2] == validated[2:]
    assert float(data.example_pair(torch.device("cpu")).lq_pm1.double().sum()) == validated[0]


def test_ranges_and_global_random_state(tmp_path: Path) -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    pair = module().example_pair(torch.device("cpu"))
    assert torch.equal(torch.random.get_rng_state(), before)
    for image in (pair.lq_pm1, pair.gt_pm1):
        assert image.shape == (2, 3, SIZE, SIZE) and image.min() >= -1 and image.max() <= 1 and image.min() < -0.5


def test_random_size_crops_the_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("basicsr.data.transforms.WINDOW_SIDES", (4, 8))
    shapes: set[tuple[int, ...]] = set()
    step = Recorder.training_step

    def note(self: Recorder, pair: Pair, batch_idx: int) -> Tensor:
        assert pair.lq_pm1.shape == pair.gt_pm1.shape
        shapes.add(tuple(pair.gt_pm1.shape[-2:]))
        return step(self, pair, batch_idx)

    monkeypatch.setattr(Recorder, "training_step", note)
    fit(module(random_size=True), 8, tmp_path)
    assert len(shapes) > 1 and shapes <= {(a, b) for a in (4, 8) for b in (4, 8)}


def test_too_few_pictures_and_other_mistakes() -> None:
    with pytest.raises(UserError, match="takes 4 pictures and the training set has 3"):
        module(length=3).check_sizes(ranks=2)
    module(length=4).check_sizes(ranks=2)
    with pytest.raises(UserError, match="batch_size is 0"):
        module(batch_size=0)
    with pytest.raises(UserError, match="degradation"):
        module(degradation=None)
    with pytest.raises(UserError, match="nothing to train on"):
        DataModuleFromConfig(2, degradation=DEGRADATION).check_sizes(1)
