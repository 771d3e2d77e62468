"""Names from files in CSVs: no spreadsheet runs them, no terminal obeys them."""

import csv
import math
from pathlib import Path

import pytest

from ldm.evaluation.report.summary import write_csv


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("=1+2", "'=1+2"),
        ("+1", "'+1"),
        ("-1", "'-1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("a\x1b[2Jb\r\n", "a\ufffd[2Jb\ufffd\ufffd"),
        ("Blüte 1=2", "Blüte 1=2"),
    ],
)
def test_a_name_stays_a_text(tmp_path: Path, name: str, cell: str) -> None:
    write_csv(tmp_path / "a.csv", [{"picture": name, "psnr": -1.5, "none": math.nan}])
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == [{"picture": cell, "psnr": "-1.5", "none": ""}]
