"""Training on pairs from the command line to the checkpoint, beside degraded pictures and validated on pairs."""

from pathlib import Path

import pytest
from PIL import Image
from tiny_run import ROOT, write_tiny_run

from main import main


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four pictures, half as large copies in small/, tiny.yaml, and pairs.yaml."""
    write_tiny_run(tmp_path)
    (tmp_path / "small").mkdir()
    for file in (tmp_path / "pictures").iterdir():
        with Image.open(file) as picture:
            picture.resize((24, 24), Image.Resampling.BICUBIC).save(tmp_path / "small" / file.name)
    pair = "{target: basicsr.data.paired_image_dataset.PairedImageDataset, params: "
    folders = "dataroot_gt: pictures, dataroot_lq: small, gt_size: 32"
    photos = "{target: basicsr.data.realesrgan_dataset.RealESRGANDataset, params: {gt_path: pictures, crop_size: 32, "
    (tmp_path / "pairs.yaml").write_text(
        f"base: [tiny.yaml, {ROOT}/configs/stableSRNew/without_data.yaml]\n"
        "data:\n  target: main.DataModuleFromConfig\n  params:\n    batch_size: 2\n    num_workers: 0\n"
        "    train:\n      target: ldm.data.mixed.MixedDataset\n"
        f"      params: {{ratio: [1, 1], sets: [{pair}{{{folders}}}}}, {photos}queue_size: 0}}}}]}}\n"
        f"    validation: {pair}{{{folders}, phase: val}}}}\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_pairs_train_and_validate(here: Path) -> None:
    assert main(["--base", "pairs.yaml", "--logger", "csv", "--logdir", "logs", "lightning.trainer.max_steps=4"]) == 0
    (run,) = (here / "logs").iterdir()
    assert (run / "checkpoints" / "last.ckpt").is_file()
    assert "val/loss_simple" in (run / "metrics.csv").read_text()


def test_a_pair_that_does_not_fit_stops_before_training(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (20, 24)).save(here / "small" / "2.png")
    assert main(["--base", "pairs.yaml", "--logger", "csv", "--logdir", "logs"]) == 2
    *_, line = capsys.readouterr().err.strip().splitlines()
    assert "data.params.train: sets.0: dataroot_lq has pictures of a wrong size" in line
    assert "small/2.png is 20x24 and 2.png 48x48" in line
