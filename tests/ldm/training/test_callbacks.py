"""Pictures, probe, progress lines, metrics.csv and the curves, around a real Trainer with a model of one layer."""

import csv
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import wandb
from PIL import Image
from reference.models import loader
from torch import Tensor
from torch.utils.data import DataLoader

from basicsr.data.pair_pool import Pair
from basicsr.utils.errors import UserError
from basicsr.utils.grid import GAP, LABEL_HEIGHT, MIN_TILE, labelled_grid
from ldm.training.callbacks.edge_probe import EdgeProbe
from ldm.training.callbacks.image_logger import ImageLogger
from ldm.training.callbacks.progress import StepProgress
from ldm.training.loggers import MetricsFile, finish_loggers, make_loggers, read_metrics, wandb_folder
from ldm.training.plots import save_loss_curves


def pair(value: float = 0.0) -> Pair:
    return Pair(torch.full((2, 3, 8, 8), value), torch.zeros(2, 3, 8, 8), ("a", "b"))


class Data(pl.LightningDataModule):
    """Two batches an epoch, and the pair that callbacks ask for."""

    def train_dataloader(self) -> DataLoader[Any]:
        return loader([torch.zeros(2, 3, 8, 8)] * 2)

    def on_after_batch_transfer(self, batch: Tensor, dataloader_idx: int) -> Pair:
        return pair(float(batch.mean()))

    def example_pair(self, device: torch.device) -> Pair:
        return pair(0.5)


class Model(pl.LightningModule):
    """Draws from the global random stream, where a trainer's callbacks must leave no trace."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(4.0))
        self.draws: list[float] = []
        self.asked: list[float] = []

    def training_step(self, batch: Pair, batch_idx: int) -> Tensor:
        self.draws.append(float(torch.rand(())))
        loss = self.weight**2
        self.log_dict({"train/loss": loss, "train/loss_edge": loss / 2}, batch_size=len(batch))
        return loss

    def log_images(self, batch: Pair, n: int) -> dict[str, Tensor]:
        torch.rand(3)
        assert not torch.is_grad_enabled()
        self.asked.append(float(batch.lq_pm1.mean()))
        return {"lq": batch.lq_pm1[:n], "gt": batch.gt_pm1[:n]}

    def edge_probe(self, batch: Pair) -> dict[str, float]:
        torch.rand(3)
        return {"loss_edge": float(self.weight) * float(batch.lq_pm1.mean())}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.125)  # each step keeps 3/4 of the weight


def fit(folder: Path, steps: int, *callbacks: pl.Callback, **options: Any) -> Model:
    torch.manual_seed(1)
    model = Model()
    options = {"logger": False, "enable_progress_bar": False, **options}
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        callbacks=list(callbacks),
        default_root_dir=folder,
        enable_checkpointing=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        **options,
    )
    trainer.fit(model, datamodule=Data())
    return model


def pictures(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder / "images").as_posix() for path in (folder / "images").rglob("*.png"))


def test_grids_are_written_and_disturb_nothing(tmp_path: Path) -> None:
    plain = fit(tmp_path / "plain", 5)
    model = fit(tmp_path, 5, ImageLogger(2, max_images=1))
    assert pictures(tmp_path) == ["final.png", "train/step-000002.png", "train/step-000004.png"]
    assert model.asked == [0.0, 0.0, 0.5]  # the current batch twice, then the fixed one
    assert model.draws == plain.draws


def test_early_steps_and_accumulation(tmp_path: Path) -> None:
    fit(tmp_path, 4, ImageLogger(4, 2, increase_log_steps=True), accumulate_grad_batches=2)
    assert pictures(tmp_path) == ["final.png", *(f"train/step-00000{step}.png" for step in (1, 2, 4))]


def test_a_grid_shows_every_tile(tmp_path: Path) -> None:
    red = torch.tensor([1.0, -1, -1]).view(3, 1, 1).expand(2, 3, 8, 8)
    grid = labelled_grid({"lq": red, "gt": -torch.ones(2, 3, 8, 8)})
    assert grid.size == (2 * MIN_TILE + 3 * GAP, 2 * (MIN_TILE + GAP) + LABEL_HEIGHT + GAP)
    assert grid.getpixel((GAP + 5, LABEL_HEIGHT + 5)) == (255, 0, 0)
    assert grid.getpixel((MIN_TILE + 2 * GAP + 5, LABEL_HEIGHT + MIN_TILE + GAP + 5)) == (0, 0, 0)
    darkest = min(min(grid.getpixel((x, y))) for x in range(MIN_TILE) for y in range(LABEL_HEIGHT))  # type: ignore[arg-type]  # grey: one number a pixel
    assert darkest < 100  # a label is written there


@pytest.mark.parametrize("wrong", [{"batch_frequency": 0}, {"max_images": 0}])
def test_image_logger_refuses(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="is 0: give a number of 1 or more"):
        ImageLogger(**wrong)


def test_edge_probe_reports_the_fall(tmp_path: Path) -> None:
    probe = EdgeProbe()
    plain = fit(tmp_path / "plain", 2)
    model = fit(tmp_path, 2, probe)
    assert probe.start == {"loss_edge": 2.0} and probe.end == {"loss_edge": 2.0 * 0.75**2}
    assert probe.report() == "edge loss on the fixed validation batch: 2 -> 1.125 (-44 %)"
    assert model.draws == plain.draws
    later = EdgeProbe()
    later.load_state_dict(probe.state_dict())
    fit(tmp_path, 1, later)
    assert later.start == {"loss_edge": 2.0}  # a resumed run compares with the first start


def test_progress_without_a_terminal_is_a_few_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, 50, StepProgress(), enable_progress_bar=True)
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("step 1/50, loss 16, loss_edge 8, ") and "steps/s" in lines[0] and "left" in lines[0]
    assert lines[1].startswith("step 50/50, loss ")


def test_metrics_file_grows_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    first = MetricsFile(path)
    for step in range(4):
        first.log_metrics({"loss": step / 2}, step)
    first.log_metrics({"val": 7.0}, 3)
    resumed = MetricsFile(path, resumed_at=2)
    resumed.log_metrics({"loss": 9.0}, 2)  # went back to step 2: the rows from there on are made again
    resumed.log_metrics({"loss": 9.5, "new": 1.0}, 3)
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["step", "loss", "val", "new"] and all(len(row) == 4 for row in rows)
    expected = [{"step": 0, "loss": 0}, {"step": 1, "loss": 0.5}, {"step": 2, "loss": 9}]
    assert read_metrics(path) == [*expected, {"step": 3, "loss": 9.5, "new": 1}]


def test_a_run_writes_one_row_per_step(tmp_path: Path) -> None:
    fit(tmp_path, 3, logger=MetricsFile(tmp_path / "metrics.csv"))
    rows = read_metrics(tmp_path / "metrics.csv")
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert [row["train/loss"] for row in rows] == pytest.approx([16, 9, 5.0625])


def test_loss_curves(tmp_path: Path) -> None:
    path = tmp_path / "curves.png"
    assert not save_loss_curves([{"step": 0, "train/loss": 1.0}], path) and not path.exists()
    rows = [{"step": step, "train/loss": 1.0 / (step + 1), "train/loss_edge": 0.5} for step in range(50)]
    assert save_loss_curves(rows, path)
    one = tmp_path / "one.png"
    assert save_loss_curves([{"step": row["step"], "train/loss": row["train/loss"]} for row in rows], one)
    assert Image.open(path).height > 1.5 * Image.open(one).height  # a panel for each loss


def make(kind: str, folder: Path) -> list[Any]:
    return make_loggers(kind, folder, project="p", wandb_id="i", resumed_at=None, config={})


def test_choice_of_loggers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [type(logger) for logger in make("csv", tmp_path)] == [MetricsFile]
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert [type(logger) for logger in make("wandb", tmp_path)] == [MetricsFile]
    with pytest.raises(UserError, match="choose one of"):
        make("mlflow", tmp_path)


@pytest.mark.parametrize("known", ["", "machine api.wandb.ai login user password " + 40 * "0"])
def test_wandb_asks_nothing_and_survives_without_a_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, known: str
) -> None:
    """No key: offline at once. A key in the netrc file and no network: offline after one attempt."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "netrc").write_text(known)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    modes, start = [], wandb.init

    def init(**options: Any) -> Any:
        modes.append(options["mode"])
        if options["mode"] == "online":
            raise wandb.errors.CommError("no such host\nand more")
        return start(**options)

    monkeypatch.setattr(wandb, "init", init)
    with caplog.at_level("INFO"):
        loggers = make("wandb", tmp_path)
        assert wandb_folder(loggers) is None and not modes  # nothing starts before it is used
        loggers[1].log_metrics({"train/loss": 1.0}, 0)
    finish_loggers(loggers)
    why = "W&B cannot be reached: no such host" if known else "no API key and no WANDB_MODE"
    assert modes == (["online", "offline"] if known else ["offline"])
    assert f"W&B runs offline ({why}); send this run later with: wandb sync {wandb_folder(loggers)}" in caplog.text
    assert list(tmp_path.glob("wandb/offline-run-*-i/run-i.wandb"))


def test_tensorboard_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("_TENSORBOARD_AVAILABLE", "_TENSORBOARDX_AVAILABLE"):
        monkeypatch.setattr(f"lightning_fabric.loggers.tensorboard.{package}", False)
    with pytest.raises(UserError, match="pip install tensorboard"):
        make("tensorboard", tmp_path)
