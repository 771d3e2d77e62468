"""What the edge monitor measures, on a real fit of a small model."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from reference.models import SMALL, Pairs, pair, stage1, trainer

from basicsr.data.pair_pool import Pair
from basicsr.utils.errors import FieldError
from ldm.models.diffusion.ddpm import LatentDiffusionSRTextWT
from ldm.training.callbacks.edge_monitor import EdgeMonitorCallback
from ldm.training.loggers import MetricsFile, read_metrics

FIRST = "structcond_stage_model.input_blocks.0.0.weight"
OPTIONS: dict[str, Any] = {"learning_rate": 1e-3, "edge_condition": {"source": "gt", "dropout": 0.0}}


class PairsWithExample(Pairs):
    """The monitor looks at the data module's fixed pair."""

    def example_pair(self, device: torch.device) -> Pair:
        return pair(99)


def edged(channels: int = 8, **params: Any) -> LatentDiffusionSRTextWT:
    encoder = "ldm.modules.diffusionmodules.openaimodel.EncoderUNetModelWT"
    structure = {"target": encoder, "params": {**SMALL["structure"], "in_channels": channels}}
    return stage1(structcond_stage_config=structure, **params)


def fit(folder: Path, model: pl.LightningModule, steps: int, **options: Any) -> list[dict[str, float]]:
    """Train on, and return the monitor's rows."""
    data, accumulate = PairsWithExample(2 * steps), options.pop("accumulate_grad_batches", 1)
    monitor = EdgeMonitorCallback(**options)
    logger = MetricsFile(folder / "metrics.csv")
    trainer(folder, steps, callbacks=[monitor], logger=logger, accumulate_grad_batches=accumulate).fit(
        model, datamodule=data
    )
    return [row for row in read_metrics(folder / "metrics.csv") if "edge_monitor/effect" in row]


def test_norms_are_those_of_the_two_halves(tmp_path: Path) -> None:
    model = edged(**OPTIONS)
    gradients: list[torch.Tensor] = []
    model.get_parameter(FIRST).register_post_accumulate_grad_hook(lambda weight: gradients.append(weight.grad.clone()))
    rows = fit(tmp_path, model, 4, check_frequency=2, accumulate_grad_batches=2)
    assert [row["step"] for row in rows] == [0, 1, 3]  # after the first step, and after each second
    weight, gradient = model.get_parameter(FIRST).detach(), gradients[-1]  # of both batches, for gradients add up
    for name, tensor in (("weight", weight), ("gradient", gradient)):
        picture, edges = float(tensor[:, :4].norm()), float(tensor[:, 4:].norm())
        values = {"picture": picture, "edges": edges, "ratio": edges / picture}
        assert {half: rows[-1][f"edge_monitor/{name}_{half}"] for half in values} == pytest.approx(values, rel=1e-5)
    effect = model.edge_effect(pair(99))
    assert {name: rows[-1][f"edge_monitor/{name}"] for name in effect} == pytest.approx(effect, rel=1e-5)
    assert (tmp_path / "edge_monitor.png").read_bytes().startswith(b"\x89PNG")


def test_watching_does_not_change_what_is_trained(tmp_path: Path) -> None:
    watched, alone = edged(**OPTIONS), edged(**OPTIONS)
    fit(tmp_path, watched, 3, check_frequency=1)
    trainer(tmp_path, 3).fit(alone, datamodule=PairsWithExample(6))
    assert torch.equal(watched.get_parameter(FIRST), alone.get_parameter(FIRST))


def test_switches_leave_norms_out(tmp_path: Path) -> None:
    (row,) = fit(tmp_path, edged(**OPTIONS), 1, log_gradients=False, log_weights=False)
    assert {name for name in row if name.startswith("edge_monitor/")} == {"edge_monitor/effect", "edge_monitor/gain"}


def test_alone_there_is_one_half(tmp_path: Path) -> None:
    (row,) = fit(tmp_path, edged(4, edge_condition={"use": "alone", "source": "gt"}), 1)
    names = {"weight_edges", "gradient_edges", "effect", "gain"}
    assert {name for name in row if name.startswith("edge_monitor/")} == {f"edge_monitor/{name}" for name in names}


def test_without_an_edge_input_it_says_that_there_is_nothing_to_watch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert fit(tmp_path, stage1(), 1) == []
    assert "this model sees no edges, there is nothing to watch" in caplog.text
    assert not (tmp_path / "edge_monitor.png").exists()


def test_a_frequency_is_at_least_one() -> None:
    with pytest.raises(FieldError, match="check_frequency is 0"):
        EdgeMonitorCallback(check_frequency=0)
