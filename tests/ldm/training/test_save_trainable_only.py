"""`save_trainable_only`: small checkpoints that go on exactly, and say what they need where it is not there."""

from pathlib import Path

import pytest
import torch
from tiny_run import write_tiny_model, write_tiny_run

from ldm.config import load_config
from ldm.inference import cli as upscaling
from ldm.models.build import build_model
from ldm.training.cli import main

WORDS = ["--base", "own.yaml", "--logger", "csv", "lightning.callbacks=null"]
OWN = """
base: tiny.yaml
model: {params: {ckpt_path: model.ckpt, unfrozen_diff: false, save_trainable_only: true}}
"""


def only_run(folder: Path, name: str) -> Path:
    (run,) = (folder / "logs").glob(f"*_{name}")
    return run


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_tiny_run(tmp_path)
    write_tiny_model(tmp_path)
    (tmp_path / "own.yaml").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_it_goes_on_as_a_complete_checkpoint_does(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*WORDS, "-n", "whole", "model.params.save_trainable_only=false", "--max_steps", "2"]) == 0
    assert main([*WORDS, "-n", "small", "--max_steps", "1"]) == 0
    small, whole = (only_run(here, name) / "checkpoints" / "last.ckpt" for name in ("small", "whole"))
    held = torch.load(small, weights_only=True)["state_dict"]
    assert not any(key.startswith(("first_stage_model.", "cond_stage_model.")) for key in held)
    assert any(".spade." in key for key in held) and not any("time_embed" in key and "model.d" in key for key in held)
    assert small.stat().st_size < 0.8 * whole.stat().st_size
    assert main(["--resume", str(only_run(here, "small")), "--max_steps", "2"]) == 0
    wanted = torch.load(whole, weights_only=True)["state_dict"]
    completed = build_model(load_config(["own.yaml"]), ckpt=small).state_dict()
    assert all(torch.equal(completed[key], value) for key, value in wanted.items() if key in completed)
    # Other tools: a result from it, and a new run that cannot begin from it.
    assert upscale(small) == 0
    capsys.readouterr()
    assert main([*WORDS, f"model.params.ckpt_path={small}"]) == 2
    assert "leaves out the frozen parts (save_trainable_only): go on with its run by --resume" in one_line(capsys)


def test_another_base_file_or_none_is_told_in_a_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*WORDS, "-n", "small", "--max_steps", "1"]) == 0
    run = only_run(here, "small")
    small = run / "checkpoints" / "last.ckpt"
    (here / "model.ckpt").rename("elsewhere.ckpt")
    capsys.readouterr()
    assert main(["--resume", str(run), "--max_steps", "2"]) == 2
    assert "model.params.ckpt_path: 'model.ckpt' is not there" in one_line(capsys)
    assert upscale(small) == 2
    assert "the file that has them cannot be used: no checkpoint at model.ckpt" in one_line(capsys)
    assert main(["--resume", str(run), "--max_steps", "2", "model.params.ckpt_path=elsewhere.ckpt"]) == 0

    state = torch.load("elsewhere.ckpt", weights_only=True)["state_dict"]
    key = next(key for key in state if key.startswith("first_stage_model.") and state[key].ndim == 4)
    torch.save({"state_dict": {**state, key: state[key] + 1e-3}}, "model.ckpt")
    capsys.readouterr()
    assert main(["--resume", str(run), "--max_steps", "3", "model.params.ckpt_path=model.ckpt"]) == 2
    assert "those in the config's ckpt_path files are others" in one_line(capsys)
    assert upscale(small) == 2
    assert "those in the config's ckpt_path files are others" in one_line(capsys)
    assert main([*WORDS, "model.params.ckpt_path=null"]) == 2
    assert "save_trainable_only is true and ckpt_path null" in one_line(capsys)


def upscale(ckpt: Path) -> int:
    words = ["--base", "own.yaml", "--ckpt", str(ckpt), "--input", "pictures/0.png", "--steps", "1", "--upscale", "1"]
    return upscaling.main(words)


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = capsys.readouterr().err.splitlines()
    return line
