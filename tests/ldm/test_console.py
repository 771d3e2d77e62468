"""What command lines show: one line, whatever names of files hold; progress over all processes."""

import logging
import sys
import time

import pytest

from basicsr.utils.errors import UserError, printable
from ldm.console import configure_logging, exit_status, say
from ldm.inference.cli import progress_bars

HOSTILE = "a\x1b[2J\x1b]0;owned\x07\r\x9b31m\u202egnp.\udcffé 猫.png"
HARMLESS = "a\\x1b[2J\\x1b]0;owned\\x07\\r\\x9b31m\\u202egnp.\\udcffé 猫.png"


def test_control_characters_are_spelt_out_and_letters_stay() -> None:
    assert printable(HOSTILE) == HARMLESS
    assert printable("two\nlines\tand a tab") == "two\nlines\tand a tab"


def test_names_move_no_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    def failing() -> int:
        raise UserError(f"{HOSTILE} is not a picture")

    configure_logging("ldm.inference")
    logging.getLogger("ldm.inference.folder").info("%s -> b.png", HOSTILE)
    assert exit_status(failing, interrupted="") == 2
    say(f"results: {HOSTILE}")
    said = capsys.readouterr()
    assert said.err == f"{HARMLESS} -> b.png\nerror: {HARMLESS} is not a picture\n"
    assert said.out == f"results: {HARMLESS}\n"


@pytest.mark.parametrize(("processes", "last"), [(1, "3/3"), (2, "6/6")])
def test_the_bar_counts_the_pictures_of_all_processes(
    processes: int, last: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    for _ in progress_bars("pictures", range(3), processes):
        time.sleep(0.11)  # it is drawn ten times a second
    assert last in capsys.readouterr().err
