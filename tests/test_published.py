"""Published YAMLs beside the 512 one of test_configs.py (faces, the second stage, its data): parsed, built, trained."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import skimage.data
import torch
from PIL import Image
from pytorch_lightning.callbacks import ModelCheckpoint
from test_configs import TINY

from basicsr.data.latent_pair import LatentPair
from basicsr.data.pair_pool import Pair
from ldm.config import Config, check_config, check_paths, load_config
from ldm.models.build import build_model
from ldm.models.diffusion import faces
from ldm.models.diffusion.ddpm import LatentDiffusionSRTextWT
from ldm.util import check_arguments, get_obj_from_str, instantiate_from_config

PUBLISHED = sorted((Path(__file__).parent / "published").glob("*.yaml"))
DATA = ("data", "test_data")
SIDE = 64
FACE = next(file for file in PUBLISHED if file.name == "v2-finetune_face_T_512.yaml")


def named(file: Path) -> str:
    return file.name


def datasets(values: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every data set's `{target, params}`."""
    for block in DATA:
        for role in ("train", "validation", "test"):
            if role in (params := values.get(block, {}).get("params", {})):
                yield params[role]


def with_pictures(config: Config, folder: Path) -> Config:
    """The config with paths and sizes that a user gives as words, for a folder of small pictures."""
    for dataset in datasets(config.values):
        params = dataset["params"]
        params |= {key: str(folder) for key in ("gt_path", "dataroot_gt") if key in params}
        params |= {key: SIDE for key in ("crop_size", "out_size", "gt_size") if key in params}
    config.values.get("degradation", {})["gt_size"] = SIDE
    for block in DATA:
        if block in config.values:
            config.values[block]["params"] |= {"batch_size": 2, "num_workers": 0}
    return config


def data_module(config: Config, block: str) -> Any:
    """As main.py builds it."""
    options = {"degradation": config.get("degradation"), "sf": config.get("sf", 4), "queue_size": 0}
    data = instantiate_from_config(config.values[block], use_usm=config.get("model.params.use_usm", False), **options)
    data.setup()
    return data


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures, and two samples of the second stage's data."""
    folder = tmp_path_factory.mktemp("pictures")
    photo = Image.fromarray(skimage.data.astronaut())  # type: ignore[no-untyped-call]
    for number in range(2):
        crop = photo.crop((180, 20 + 40 * number, 180 + SIDE, 20 + 40 * number + SIDE))
        for part in ("", "inputs", "gts", "samples", "latents"):
            (folder / part).mkdir(exist_ok=True)
            crop.save(folder / part / f"{number}.png")
        np.save(folder / "latents" / f"{number}.npy", np.zeros((1, 4, 8, 8), np.float32))
    return folder


@pytest.mark.parametrize("file", PUBLISHED, ids=named)
def test_it_fits_the_code_unchanged(file: Path) -> None:
    config = load_config([file])
    check_config(config, trainer=pl.Trainer, modelcheckpoint=ModelCheckpoint)
    for node in datasets(config.values):
        assert check_arguments(get_obj_from_str(node["target"]), node["params"], name=node["target"]) is None
    with pytest.raises(ValueError, match="is not there"):  # all that is missing are files
        check_paths(config)


@pytest.mark.parametrize("file", PUBLISHED, ids=named)
def test_its_data_sets_give_pairs(file: Path, pictures: Path) -> None:
    config = with_pictures(load_config([file]), pictures)
    for block in DATA:
        if block in config.values:
            pair = data_module(config, block).example_pair(torch.device("cpu"))
            assert pair.lq_pm1.shape == pair.gt_pm1.shape == (2, 3, SIDE, SIDE)
            assert pair.lq_pm1.abs().max() <= 1
            assert isinstance(pair, LatentPair) == ("autoencoder" in file.name)


class Losses(pl.Callback):
    """Notes each step's loss."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, *args: Any) -> None:
        self.seen.append(float(outputs["loss"]))


def fit(model: pl.LightningModule, data: Any, steps: int = 2) -> list[float]:
    losses = Losses()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        logger=False,
        callbacks=[losses],
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(model, datamodule=data)
    return losses.seen


@pytest.mark.parametrize("file", [file for file in PUBLISHED if "autoencoder" not in file.name], ids=named)
def test_stage_1_trains_with_shrunken_widths(file: Path, pictures: Path) -> None:
    config = with_pictures(load_config([file], TINY), pictures)
    model = build_model(config)
    assert isinstance(model, faces.LatentDiffusionSRTextWTFFHQ) == ("face" in file.name)
    losses = fit(model, data_module(config, "data"))
    assert len(losses) == 2 and np.isfinite(losses).all()


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_faces_differ_from_the_general_model_in_a_rare_lq_alone(
    probability: float, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean: list[bool] = []
    encode = LatentDiffusionSRTextWT.encode

    def noting(self: LatentDiffusionSRTextWT, pair: Pair, rng: torch.Generator) -> Any:
        clean.append(torch.equal(pair.lq_pm1, pair.gt_pm1))
        return encode(self, pair, rng)

    monkeypatch.setattr(LatentDiffusionSRTextWT, "encode", noting)
    monkeypatch.setattr(faces, "NO_DEGRADATION_PROB", probability)
    found = []
    for cls in ("LatentDiffusionSRTextWTFFHQ", "LatentDiffusionSRTextWT"):
        config = load_config([FACE], [*TINY, f"model.target=ldm.models.diffusion.ddpm.{cls}"])
        torch.manual_seed(0)
        model = build_model(with_pictures(config, pictures))
        torch.manual_seed(0)
        found.append(fit(model, data_module(config, "data")))
    in_training = [clean[0], clean[1]]  # the general model's steps come after it and its validation
    assert in_training == [bool(probability)] * 2
    if not probability:
        assert found[0] == found[1]


def test_about_one_face_batch_in_two_hundred_is_clean() -> None:
    class Counting(faces.LatentDiffusionSRTextWTFFHQ):
        """Its draws alone."""

        global_rank = 0
        current_epoch = 0

        def __init__(self) -> None:
            torch.nn.Module.__init__(self)

    torch.manual_seed(0)
    pair = Pair(torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, 1), ("",))
    seen: list[float] = []
    original = LatentDiffusionSRTextWT.training_step
    LatentDiffusionSRTextWT.training_step = lambda self, pair, i: seen.append(float(pair.lq_pm1.mean()))  # type: ignore
    try:
        for index in range(8000):
            Counting().training_step(pair, index)
    finally:
        LatentDiffusionSRTextWT.training_step = original  # type: ignore[method-assign]
    assert 20 <= sum(seen) <= 60  # 40 of 8000, within three standard deviations
