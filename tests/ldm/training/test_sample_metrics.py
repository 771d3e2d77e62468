"""Sampled metrics at validation, in a real training run, and ModelCheckpoint choosing by them."""

import math
from pathlib import Path

import pytest
from tiny_run import write_tiny_run

from basicsr.utils.errors import UserError
from ldm.evaluation.measure.runs import open_runs, select_checkpoints
from ldm.training.callbacks.sample_metrics import SampleMetrics
from ldm.training.loggers import read_metrics
from main import main

NAMES = ("val/psnr_y", "val/ssim_y", "val/edge_f1", "val/edge_psnr")
PLAIN = "base: tiny.yaml\nlightning: {callbacks: null}\n"
METRICS = """
base: plain.yaml
lightning:
  callbacks:
    sample_metrics:
      target: main.SampleMetrics
      params: {max_images: 2, steps: 2}
  trainer: {max_steps: 3, check_val_every_n_epoch: null, val_check_interval: 1}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_tiny_run(tmp_path)
    (tmp_path / "plain.yaml").write_text(PLAIN)
    (tmp_path / "metrics.yaml").write_text(METRICS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(*words: str) -> Path:
    before = set(Path("logs").glob("*"))
    assert main(["--base", "metrics.yaml", "--logger", "csv", *words]) == 0
    (run,) = set(Path("logs").glob("*")) - before
    return run


def losses(run: Path) -> list[float]:
    return [row["train/loss"] for row in read_metrics(run / "metrics.csv") if "train/loss" in row]


def test_every_validation_logs_them_and_model_checkpoint_monitors_one(here: Path) -> None:
    run = train("lightning.modelcheckpoint.params={monitor: val/psnr_y, mode: max, save_top_k: 1}")
    rows = [row for row in read_metrics(run / "metrics.csv") if "val/psnr_y" in row]
    assert len(rows) == 3  # one for each validation
    for row in rows:
        assert all(math.isfinite(row[name]) for name in NAMES)
        assert 0 < row["val/psnr_y"] < 60 and 0 <= row["val/edge_f1"] <= 1 and -1 <= row["val/ssim_y"] <= 1
    best = max(range(3), key=lambda index: rows[index]["val/psnr_y"]) + 1
    (opened,) = open_runs([str(run)])
    assert [each.step for each in select_checkpoints(opened, "best")[0]] == [best]
    assert (run / "checkpoints" / f"step{best:06d}.ckpt").is_file()

    without = train("lightning.callbacks=null")
    assert losses(run) == losses(without) and len(losses(run)) == 3  # training is not disturbed
    assert not any(name in row for row in read_metrics(without / "metrics.csv") for name in NAMES)


def test_equal_weights_give_equal_values(here: Path) -> None:
    """With a learning rate of next to nothing all validations see one model, and the noise is fixed."""
    run = train("model.base_learning_rate=1e-30", "--max_steps", "2")
    rows = [row for row in read_metrics(run / "metrics.csv") if "val/psnr_y" in row]
    assert len(rows) == 2 and len({tuple(row[name] for name in NAMES) for row in rows}) == 1


@pytest.mark.parametrize("wrong", [{"max_images": 0}, {"steps": 0}, {"border": -1}])
def test_refuses(wrong: dict[str, int]) -> None:
    with pytest.raises(UserError, match="give a number of"):
        SampleMetrics(**wrong)
