"""The line that says, once, that the edge loss does next to nothing, or drowns the main loss."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from reference.models import Pairs, stage1, trainer

from ldm.training.callbacks.edge_strength import EdgeStrength


def told(folder: Path, caplog: pytest.LogCaptureFixture, steps: int = 8, **params: Any) -> list[str]:
    torch.manual_seed(5)
    caplog.clear()
    model = stage1(edge_grad_ratio_every=1, **params)
    trainer(folder, steps, callbacks=[EdgeStrength()]).fit(model, Pairs(steps))
    return [line for line in caplog.messages if line.startswith("the edge loss")]


def test_a_weak_weight_is_told_once_with_the_one_that_helps(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (line,) = told(tmp_path, caplog, edge_loss_weight=1e-4)
    assert "does next to nothing" in line and "(median of 3," in line
    advised = float(re.findall(r"edge_loss_weight=([\d.e+-]+) would", line)[0])
    assert told(tmp_path, caplog, edge_loss_weight=advised) == []
    (line,) = told(tmp_path, caplog, edge_loss_weight=100 * advised)
    assert "drowns the main loss" in line
    assert float(re.findall(r"edge_loss_weight=([\d.e+-]+) would", line)[0]) == pytest.approx(advised, rel=0.1)


def test_a_short_run_says_so_at_its_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert "(median of 2," in told(tmp_path, caplog, steps=2, edge_loss_weight=1e-4)[0]


def test_the_warm_up_and_a_run_without_edge_loss_say_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert told(tmp_path, caplog, edge_loss_weight="auto:0.3", edge_warmup_steps=1000) == []
    assert told(tmp_path, caplog, edge_loss_weight="auto:0.3") == []
    assert told(tmp_path, caplog, edge_loss_weight=0) == []


def test_a_resumed_run_does_not_say_it_again() -> None:
    first, second = EdgeStrength(), EdgeStrength()
    first._told, first._in_a_row = True, [(0.001, 0.1)]
    second.load_state_dict(first.state_dict())
    assert second.state_dict() == first.state_dict()
