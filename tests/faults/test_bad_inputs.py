"""200 bad inputs from a fixed seed, each answered by one line; `make faults` shows the table."""

from pathlib import Path

import pytest
from faults.bad_inputs import Case
from faults.judge import all_faults, fault, table


def test_each_bad_input_is_answered_by_one_line(tmp_path: Path) -> None:
    verdicts = list(all_faults(tmp_path))
    wrong = [f"{case.kind}: {' '.join(case.words)}: {problem}" for case, problem in verdicts if problem]
    assert not wrong, "\n".join([*wrong, table(verdicts)])
    assert len(verdicts) == 200 and "answered badly" in table(verdicts)


def test_a_good_input_would_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert fault(Case("help", "upscale", ("--input", "nowhere"))) == ""
    (tmp_path / "logs").mkdir()
    assert fault(Case("help", "upscale", ("--input", "nowhere"))) == "leaves logs"
