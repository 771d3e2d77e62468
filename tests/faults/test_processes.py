"""Two processes: as one with the doubled batch, with uneven data, and where one of them breaks down."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_two_processes(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'tests'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "faults.processes", str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["doubled"] < 1e-5
    assert told["uneven"] == [0, 0, 8, 3]
    (first, seconds, said), (other, other_seconds, other_said) = told["failing"]
    assert first == [1, 2] and other == [2, 1] and max(seconds, other_seconds) < 20
    assert "RuntimeError: broken" in said and "RuntimeError: broken" not in other_said
    assert other_said.splitlines()[-1] == (
        "error: another process of this training has ended: its own message says why; then --resume the run"
    )
