"""A few stops at random moments; `make faults` makes many."""

import os
import subprocess
import sys
from pathlib import Path

from faults.kills import differences

ROOT = Path(__file__).parents[2]


def test_a_few_stops_leave_no_trace(tmp_path: Path) -> None:
    # A process of its own: only one that has run no backward pass may fork others that do.
    words = ["--kills", "3", "--kills2", "1", "--steps", "25", "--folder", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'tests'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "faults", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("values that differ: 0") == 4, done.stdout
    assert done.stdout.count("0 missing, 0 changed") == 4


def test_differences_are_found() -> None:
    assert list(differences("", {"a": [1, 2.0]}, {"a": [1, 2.5], "b": 1})) == ["/a/1", "/b"]
