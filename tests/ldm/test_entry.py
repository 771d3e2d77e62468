"""The command `stablesr-edge`: which program a word starts, and what it costs to ask."""

import subprocess
import sys
from importlib.util import find_spec

import pytest

from ldm.entry import COMMANDS, main


def test_help_lists_every_command_and_loads_no_torch() -> None:
    code = "import sys; from ldm.entry import main; main(['--help']); print('torch' in sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "False"
    assert all(f"\n  {name} " in done.stdout for name in COMMANDS)


@pytest.mark.parametrize(("words", "said"), [(["upscle"], "did you mean 'upscale'?"), ([], "no command")])
def test_a_word_that_is_no_command_is_one_line_and_the_usage(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    first, usage = capsys.readouterr().err.split("\n", 1)
    assert first.startswith("error: ") and said in first
    assert usage.startswith("usage: stablesr-edge")


def test_a_command_gets_the_words_after_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "no/such/report"]) == 2
    assert "no/such/report" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_its_program(name: str) -> None:
    assert find_spec(COMMANDS[name].module) is not None
