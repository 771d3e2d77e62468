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
from ldm.config import PATH_KEYS, Config, _paths, check_config, check_paths, load_config
from ldm.inference import Upscaler
from ldm.inference.cli import main as upscale
from ldm.inference.settings import UpscaleSettings
from ldm.models.build import build_model
from ldm.models.diffusion import faces
from ldm.models.diffusion.ddpm import LatentDiffusionSRTextWT
from ldm.util import check_arguments, get_obj_from_str, instantiate_from_config
from main import main

EVERY = sorted((Path(__file__).parent / "published").glob("*.yaml"))
PUBLISHED = [file for file in EVERY if "inference" not in file.name]
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
        params |= {key: str(folder) for key in ("gt_path", "dataroot_gt", "face_gt_path") if key in params}
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
    photo = Image.fromarray(skimage.data.astronaut())
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


@pytest.mark.parametrize("file", [file for file in PUBLISHED if "autoencoder" in file.name], ids=named)
def test_stage_2_trains_with_shrunken_widths(file: Path, pictures: Path) -> None:
    words = ["ddconfig.ch=32", "ddconfig.ch_mult=[1,1,1,1]", "ckpt_path=null", "lossconfig.params.perceptual_weight=0"]
    config = with_pictures(load_config([file], [f"model.params.{word}" for word in words]), pictures)
    model = build_model(config)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=2, logger=False, enable_progress_bar=False, enable_checkpointing=False,
        enable_model_summary=False, use_distributed_sampler=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(model, datamodule=data_module(config, "data"))
    assert trainer.global_step == 2
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert moved and all("fusion_layer" in name or name.startswith("loss.discriminator.") for name in moved)


def path_words(config: Config, folder: Path) -> list[str]:
    """The words by which a user gives the paths."""
    found = [path for block in ("model", *DATA) for path in _paths(config.values.get(block), (block,))]
    return [
        f"{'.'.join(path)}={'null' if path[-1] in ('ckpt_path', 'meta_info') else folder}"
        for path in found
        if path[-1] in PATH_KEYS and config.get(".".join(path)) is not None
    ]


@pytest.mark.parametrize("file", PUBLISHED, ids=named)
def test_check_finds_nothing_but_paths(file: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--check builds the model in full size, on the meta device, and the data sets."""
    words = path_words(load_config([file]), pictures)
    assert main(["--base", str(file), "--check"]) == 2
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("error: ")]
    assert lines and all("is not there" in line for line in lines)
    assert main(["--base", str(file), "--check", *words]) == 0, capsys.readouterr().out


def test_a_model_block_alone_upscales(tmp_path: Path) -> None:
    (file,) = (file for file in EVERY if "inference" in file.name)
    config = load_config([file], TINY)
    assert list(config.values) == ["model"]
    (tmp_path / file.name).write_text(config.to_yaml())
    torch.save({"state_dict": build_model(config).state_dict()}, tmp_path / "model.ckpt")
    settings = UpscaleSettings(steps=1, upscale=1, tile=64)
    upscaler = Upscaler.from_checkpoint(tmp_path / file.name, tmp_path / "model.ckpt", settings=settings, device="cpu")
    assert upscaler.networks.frame == 512
    assert upscaler(torch.rand(3, 64, 64)).shape == (3, 64, 64)  # type: ignore[union-attr]  # a tensor for a tensor


ABANDONED = "ldm.models.diffusion.ddpm_with_edge.LatentDiffusionSRTextWTWithEdge"


@pytest.mark.parametrize(
    "word",
    [
        f"model.target={ABANDONED}",
        "model.params.unet_config.target=ldm.modules.diffusionmodules.unet_with_edge.UNetModelDualcondV2WithEdge",
        "model.params.unet_config.params.use_edge_map=true",
        "model.params.unet_config.params.use_edge_processing=true",
        "model.params.unet_config.params.use_edge_fusion=true",
        "model.params.unet_config.params.edge_input_channels=4",
        "model.params.unet_config.params.edge_weight=1.0",
    ],
)
def test_the_forks_abandoned_branches_are_refused_with_the_way_out(
    word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = next(file for file in PUBLISHED if file.name == "v2-finetune_text_T_512.yaml")
    assert main(["--base", str(file), word, "--train", "false"]) == 2
    said = capsys.readouterr()
    lines = [line for line in (said.out + said.err).splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "structcond_stage_config.params.in_channels: 8" in lines[0], lines


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_faces_differ_from_the_general_model_in_a_rare_lq_alone(
    probability: float, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean: list[bool] = []
    encode = LatentDiffusionSRTextWT.encode

    def noting(self: LatentDiffusionSRTextWT, pair: Pair, rng: torch.Generator, **options: Any) -> Any:
        clean.append(torch.equal(pair.lq_pm1, pair.gt_pm1))
        return encode(self, pair, rng, **options)

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


def test_about_one_face_batch_in_two_hundred_is_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    class Counting(faces.LatentDiffusionSRTextWTFFHQ):
        """Its draws alone."""

        global_rank = 0
        current_epoch = 0

        def __init__(self) -> None:
            torch.nn.Module.__init__(self)

    torch.manual_seed(0)
    pair = Pair(torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, 1), ("",))
    seen: list[float] = []

    def seeing(self: LatentDiffusionSRTextWT, pair: Pair, batch_idx: int) -> None:
        seen.append(float(pair.lq_pm1.mean()))

    monkeypatch.setattr(LatentDiffusionSRTextWT, "training_step", seeing)
    for index in range(8000):
        Counting().training_step(pair, index)
    assert 20 <= sum(seen) <= 60  # 40 of 8000, within three standard deviations


def trained(file: Path, pictures: Path, *words: str) -> Path:
    """The run of two steps of main.py in the working directory."""
    sizes = [f"data.params.{role}.params.{key}={SIDE}" for role in ("train", "validation") for key in ("crop_size",)]
    sizes += [f"degradation.gt_size={SIDE}", "data.params.batch_size=2", "data.params.num_workers=0"]
    options = ["--max_steps", "2", "--accumulate_grad_batches", "1", "--logger", "csv", "lightning.callbacks=null"]
    assert main(["--base", str(file), *options, *TINY, *sizes, *words, "test_data=null"]) == 0
    (run,) = Path("logs").iterdir()
    return run


def test_keys_as_people_write_them(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rate that is a text to YAML, pictures that count several times, and their edge maps."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "maps").mkdir()
    Image.new("L", (SIDE, SIDE), 255).save(tmp_path / "maps/0.png")
    base = next(file for file in PUBLISHED if file.name == "v2-finetune_text_T_512.yaml")
    roles = "\n".join(
        f"    {role}: {{params: {{gt_path: {pictures}, face_gt_path: null}}}}" for role in ("train", "validation")
    )
    (tmp_path / "mine.yaml").write_text(
        f"base: {base}\nmodel:\n  base_learning_rate: 1e-5\ndata:\n  params:\n{roles}\n"
    )
    more = [
        f"data.params.train.params.{word}"
        for word in ("mul_num=3", f"edge_map_path={tmp_path / 'maps'}", f"gt_size={SIDE}")
    ]
    more.append(f"data.params.validation.params.gt_size={SIDE}")
    run = trained(tmp_path / "mine.yaml", pictures, *more, "data.params.train.params.queue_size=2")
    state = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    assert state["optimizer_states"][0]["param_groups"][0]["lr"] == 1e-5
    assert state["global_step"] == 2
    config = load_config([next((run / "configs").glob("*-config.yaml"))])
    assert len(instantiate_from_config(config.values["data"]["params"]["train"])) == 3 * len(
        list(pictures.rglob("*.png"))
    )


def test_faces_from_training_to_pictures(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    faces_words = [f"data.params.{role}.params.dataroot_gt={pictures}" for role in ("train", "validation")]
    outs = [f"data.params.{role}.params.out_size={SIDE}" for role in ("train", "validation")]
    run = trained(FACE, pictures, *faces_words, *outs)
    (config,) = (run / "configs").glob("*-config.yaml")
    model = ["--base", str(config), "--ckpt", str(run / "checkpoints/last.ckpt"), "--steps", "2", "--upscale", "1"]
    results = []
    for more in ([], ["--reference", str(pictures / "1.png"), "--reference_rate", "0.5"]):
        assert upscale([*model, "--input", str(pictures / "0.png"), "--overwrite", *more]) == 0
        results.append(np.asarray(Image.open("results/0.png")).astype(int))
    assert results[0].shape == (SIDE, SIDE, 3) and (results[0] != results[1]).any()
