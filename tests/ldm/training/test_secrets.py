"""A W&B key is in no file that a run leaves, and in nothing that it says."""

from pathlib import Path

import pytest
from tiny_run import write_tiny_run

from ldm.training.cli import main

KEY = "0123456789abcdef" * 2 + "01234567"


def test_a_wandb_key_is_never_logged_or_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write_tiny_run(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert main(["--base", "tiny.yaml", "lightning.callbacks=null", "--max_steps", "1"]) == 0
    said = capfd.readouterr()
    assert KEY not in said.out + said.err
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files) and any(path.suffix == ".ckpt" for path in files)
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
