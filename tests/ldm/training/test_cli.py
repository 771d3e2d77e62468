"""The command line: quick help, the table of Lightning's flags, and exit statuses."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl

import main
from ldm.console import is_first_process
from ldm.training.cli import parse_arguments
from ldm.training.trainer_flags import TRAINER_FLAGS

ROOT = Path(__file__).parents[3]
# What main.py sets itself, so that it is no flag.
NOT_OFFERED = {
    "self", "logger", "callbacks", "plugins", "default_root_dir", "use_distributed_sampler", "barebones",
    "enable_checkpointing",
}  # fmt: skip


def test_the_table_is_the_trainers_signature() -> None:
    signature = inspect.signature(pl.Trainer.__init__).parameters
    expected = {name: parameter.default for name, parameter in signature.items() if name not in NOT_OFFERED}
    assert expected == TRAINER_FLAGS


def test_help_imports_no_torch() -> None:
    code = "import sys, main\ntry: main.main(['--help'])\nexcept SystemExit: pass\nprint('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False" and "--accumulate_grad_batches" in done.stdout


@pytest.mark.parametrize("name", [name for name in main.__all__ if name != "main"])
def test_what_yamls_call_main_is_there(name: str) -> None:
    assert getattr(main, name).__name__ == name and name in dir(main)


def test_what_is_not_there_says_so() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'ImageLoger'"):
        _ = main.ImageLoger


def test_one_process_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert is_first_process()
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert not is_first_process()


def test_flags_and_overrides_are_told_apart() -> None:
    options = parse_arguments(["--base", "a.yaml", "x.y=1", "--max_steps", "7", "--check", "-r", "auto"])
    assert options.base == ["a.yaml"] and options.overrides == ["x.y=1"] and options.trainer == {"max_steps": 7}
    assert options.check and options.resume == "auto" and options.logdir is None
