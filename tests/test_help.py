"""--help: at once, without torch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@pytest.mark.parametrize(
    "script",
    ["main.py", "scripts/upscale.py", "scripts/app.py", "scripts/edge_maps.py", "scripts/generate_cfw_data.py"],
)
def test_help_loads_no_torch(script: str) -> None:
    code = (
        "import runpy, sys\nsys.argv = [sys.argv[1], '--help']\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'gradio', 'pytorch_lightning'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, script], capture_output=True, text=True, cwd=ROOT, env=ONE_THREAD
    )
    assert done.returncode == 0 and "--" in done.stdout, done.stderr
