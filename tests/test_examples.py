"""The examples run, from any folder, and show what they say."""

import re
import subprocess
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]


def test_following_the_edge_loss_sharpens_edges(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "examples/sharpen_edges.py"), "--output", "here"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    rows = re.findall(r"^(true|bicubic|upscaled|after the steps) +([\d.]+) +([\d.]+)$", done.stdout, re.MULTILINE)
    f1, loss = ({name: float(row[column]) for name, *row in rows} for column in (0, 1))
    assert f1["true"] == 1 and loss["true"] == 0
    assert f1["upscaled"] > f1["bicubic"] + 0.03
    assert f1["after the steps"] > f1["bicubic"] + 0.05 and loss["after the steps"] < loss["bicubic"] / 2
    assert Image.open(tmp_path / "here/edges.png").size == (4 * 256, 2 * 256)
