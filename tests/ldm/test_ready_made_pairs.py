"""Ready-made pairs in training: alone, mixed with pictures that are degraded here, and in validation beside any."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import skimage.data
import torch
from PIL import Image
from test_datamodule import DEGRADATION, Recorder

from basicsr.data.latent_pair import LatentPair
from basicsr.utils.errors import FieldError, UserError
from ldm.data.datamodule import DataModuleFromConfig
from ldm.data.mixed import MixedDataset, by_kind

SIZE = 32
GREY = 120  # the level of every real pair's GT; its LQ is darker by 20
MIXED = "ldm.data.mixed.MixedDataset"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """gt/ and lq/ with three grey pairs at factor 2, faces/ and photos/ with four pictures each."""
    root = tmp_path_factory.mktemp("pictures")
    for part in ("gt", "lq", "faces", "photos"):
        (root / part).mkdir()
    photo = Image.fromarray(skimage.data.astronaut())  # type: ignore[no-untyped-call]
    for number in range(3):
        Image.new("RGB", (48, 40), (GREY,) * 3).save(root / "gt" / f"{number}.png")
        Image.new("RGB", (24, 20), (GREY - 20,) * 3).save(root / "lq" / f"{number}.png")
    for number in range(4):
        for part in ("faces", "photos"):
            photo.crop((180, 20 + 40 * number, 220, 60 + 40 * number)).save(root / part / f"{number}.png")
    return root


def paired(folder: Path, **options: Any) -> dict[str, Any]:
    params = {"dataroot_gt": str(folder / "gt"), "dataroot_lq": str(folder / "lq"), "gt_size": SIZE, **options}
    return {"target": "basicsr.data.paired_image_dataset.PairedImageDataset", "params": params}


def faces(folder: Path) -> dict[str, Any]:
    params = {"dataroot_gt": str(folder / "faces"), "out_size": SIZE, "queue_size": 180}
    return {"target": "basicsr.data.ffhq_degradation_dataset.FFHQDegradationDataset", "params": params}


def photos(folder: Path, **options: Any) -> dict[str, Any]:
    params = {"gt_path": str(folder / "photos"), "crop_size": SIZE, "queue_size": 0, **options}
    return {"target": "basicsr.data.realesrgan_dataset.RealESRGANDataset", "params": params}


def mixed(*sets: dict[str, Any], **options: Any) -> dict[str, Any]:
    return {"target": MIXED, "params": {"sets": list(sets), **options}}


def module(train: dict[str, Any], validation: dict[str, Any] | None = None, **options: Any) -> DataModuleFromConfig:
    options = {"batch_size": 4, "num_workers": 0, "use_usm": False, **options}
    data = DataModuleFromConfig(train=train, validation=validation, **options)
    data.setup()
    return data


def fit(data: DataModuleFromConfig, steps: int) -> "Sorter":
    model = Sorter()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(model, datamodule=data)
    return model


def real(gt_pm1: torch.Tensor) -> torch.Tensor:
    """Which samples of a batch are real pairs."""
    return (gt_pm1 - (GREY / 127.5 - 1)).abs().flatten(1).amax(1) < 1e-5


def test_pairs_pass_as_they_are_and_need_no_degradation(folder: Path) -> None:
    pair = module(paired(folder), batch_size=3).example_pair(torch.device("cpu"))
    assert pair.gt_pm1.shape == (3, 3, SIZE, SIZE) and real(pair.gt_pm1).all()
    torch.testing.assert_close(pair.lq_pm1, torch.full_like(pair.lq_pm1, (GREY - 20) / 127.5 - 1))


def test_faces_are_not_degraded_again(folder: Path) -> None:
    data = module(faces(folder), degradation={**DEGRADATION, "gt_size": SIZE})
    pair = data.example_pair(torch.device("cpu"))
    sample = data.datasets["train"][0]
    assert torch.equal(pair.lq_pm1[0], sample["lq"] * 2 - 1) and torch.equal(pair.gt_pm1[0], sample["gt"] * 2 - 1)
    data.check_sizes(1)  # the published queue_size asks for no pool


def test_the_published_reader_of_stage_2_gives_latents_too(tmp_path: Path) -> None:
    for part in ("inputs", "gts", "samples", "latents"):
        (tmp_path / part).mkdir()
        Image.new("RGB", (SIZE, SIZE), (GREY,) * 3).save(tmp_path / part / "0.png")
    np.save(tmp_path / "latents" / "0.npy", np.ones((1, 4, 4, 4), np.float32))
    reader = "basicsr.data.single_image_dataset.SingleImageNPDataset"
    pair = module({"target": reader, "params": {"gt_path": str(tmp_path)}}, batch_size=1).example_pair(
        torch.device("cpu")
    )
    assert isinstance(pair, LatentPair) and pair.z.shape == (1, 4, 4, 4) and real(pair.gt_pm1).all()


class Sorter(Recorder):
    """Notes which samples of each batch are real pairs, and that only the others were degraded here."""

    def __init__(self) -> None:
        super().__init__()
        self.real: list[bool] = []

    def training_step(self, pair: Any, batch_idx: int) -> torch.Tensor:
        is_real = real(pair.gt_pm1)
        assert [path.split("/")[-2] == "gt" for path in pair.paths] == is_real.tolist()
        darker = (pair.lq_pm1 - ((GREY - 20) / 127.5 - 1)).abs().flatten(1).amax(1) < 1e-5
        assert torch.equal(darker, is_real)
        self.real += is_real.tolist()
        return super().training_step(pair, batch_idx)


def test_real_pairs_and_degraded_pictures_train_together(folder: Path) -> None:
    train = mixed(paired(folder), photos(folder), ratio=[1, 3])
    options = {"degradation": {**DEGRADATION, "gt_size": SIZE}, "validation": paired(folder, phase="val")}
    model = fit(module(train, **options), 40)
    assert len(model.real) >= 4 * 40 - 40
    assert 0.15 < sum(model.real) / len(model.real) < 0.36  # a quarter, of 160: 0.07 are two standard deviations
    assert len(set(model.validated)) == 1  # the same pairs after each epoch, whatever trains
    again = fit(module(train, **options), 5)
    assert again.seen == model.seen[:5]


def test_a_picture_drawn_again_is_cut_anew(folder: Path) -> None:
    dataset = MixedDataset([photos(folder)], seed=3)
    samples = [dataset[draw] for draw in range(16)]
    assert len({sample["gt_path"] for sample in samples}) == 4
    assert len({float(sample["gt"].double().sum()) for sample in samples}) > 12
    assert torch.equal(samples[5]["gt"], MixedDataset([photos(folder)], seed=3)[5]["gt"])


def test_mistakes_are_told(folder: Path) -> None:
    with pytest.raises(UserError, match="no `degradation:` block"):
        module(mixed(paired(folder), photos(folder)))
    with pytest.raises(
        UserError, match="data.params.train: sets.1: .*has no parameter 'gt_pth'; did you mean 'gt_path'"
    ):
        module(mixed(paired(folder), photos(folder, gt_pth="x")))
    with pytest.raises(FieldError, match="ratio is .*give 2 probabilities, for PairedImageDataset, RealESRGANDataset"):
        MixedDataset([paired(folder), photos(folder)], ratio=[1])
    with pytest.raises(FieldError, match="sets is empty"):
        MixedDataset([])
    other = module(mixed(paired(folder, gt_size=24), photos(folder)), degradation=DEGRADATION, batch_size=7)
    with pytest.raises(UserError, match="pairs and degraded pictures differ in size .16x16 and 24x24."):
        other.example_pair(torch.device("cpu"))
    with pytest.raises(UserError, match="pictures of one batch differ in size .48x40 and 40x48.: set gt_size"):
        by_kind([{"gt": torch.zeros(3, 48, 40)}, {"gt": torch.zeros(3, 40, 48)}])
    single = {"target": "basicsr.data.single_image_dataset.SingleImageDataset", "params": {"dataroot_lq": str(folder)}}
    with pytest.raises(UserError, match="pictures without their true ones"):
        module(single, degradation=DEGRADATION, batch_size=1).example_pair(torch.device("cpu"))
