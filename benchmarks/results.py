"""Results of measurements, as they stand in a JSON file."""

import datetime
import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from basicsr.utils.errors import UserError
from basicsr.utils.files import write_whole
from benchmarks.case import Case, Row

SAME = 2e-3  # a difference by more than this is no rounding any more
ROW_KEY = ("row", "size", "pixels", "batch")
KEY = (*ROW_KEY, "side", "precision")


@dataclass
class Results:
    """`content` is the file: the machine, its peaks of matrix products in FLOP/s, and an entry for each case.

    An entry has the case's words, and `seconds` (of all rounds), `flop`, `peak` (bytes), perhaps `difference`,
    `operators` or, in place of all that, `failed`.
    """

    content: dict[str, Any]
    path: Path | None

    @classmethod
    def at(cls, path: Path | None, machine: dict[str, Any]) -> "Results":
        """Those of a file to complete, or new ones.

        Raises:
            UserError: the file is of another kind of machine.
        """
        if path is None or not path.is_file():
            return cls({"machine": machine, "matmul": {}, "rows": []}, path)
        content = read(path)
        if content["machine"]["kind"] != machine["kind"]:
            raise UserError(f"{path} is of {content['machine']['kind']}, this is {machine['kind']}: name another file")
        return cls(content, path)

    def peak(self, precision: str, flops: float) -> None:
        """Take note of a speed of matrix products, of which the best counts."""
        self.content["matmul"][precision] = max(flops, self.content["matmul"].get(precision, 0.0))

    def entry(self, case: Case) -> dict[str, Any]:
        """The case's, made where there is none."""
        words = {name: getattr(case, name) for name in KEY}
        for entry in self.content["rows"]:
            if all(entry[name] == value for name, value in words.items()):
                found: dict[str, Any] = entry
                return found
        self.content["rows"].append(words)
        return words

    def forget(self, case: Case) -> None:
        """All sides and precisions of a case's row, as measured before: ratios are of one run."""
        words = [getattr(case, name) for name in ROW_KEY]
        self.content["rows"] = [each for each in self.content["rows"] if [each[name] for name in ROW_KEY] != words]

    def failed(self, case: Case) -> bool:
        return "failed" in self.entry(case)

    def add(self, case: Case, row: Row, found: dict[str, Any]) -> None:
        """One more round of a case."""
        entry = self.entry(case)
        seconds = entry.get("seconds", []) + [round(value, 5) for value in found.pop("seconds", [])]
        peak = max(entry.get("peak", 0), found.pop("peak", 0))
        found.pop("whole", None)
        day = datetime.datetime.now(datetime.UTC).date().isoformat()
        entry |= {**found, "unit": row.unit, "seconds": seconds, "peak": peak, "day": day}

    def told(self, case: Case) -> str:
        """In a few words."""
        entry = self.entry(case)
        if "failed" in entry:
            return str(entry["failed"])
        return f"{statistics.median(entry['seconds']):.3g} s, {entry['peak'] / 1e9:.2f} GB"

    def save(self) -> None:
        """To the file, if there is one to be."""
        if self.path is not None:
            self.content["rows"].sort(key=lambda entry: [str(entry[name]) for name in KEY])
            write_whole(self.path, json.dumps(self.content, indent=1) + "\n")


def read(path: Path, part: str = "rows") -> dict[str, Any]:
    """The content of a file of results, which has the machine and this part: `rows`, or `arms` of loss curves.

    Raises:
        UserError: it is not one.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        content["machine"]["kind"], content[part]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no file of such results: {error}") from error
    return content


def difference(ours: Path, truth: Path, row: Row) -> float:
    """How far a result is from the baseline's, as a share of what that is.

    Of a training step, whose result is the loss and the norms of all gradients, the larger of the relative differences
    of the loss and of the norms; else the largest difference, or the mean one where the row says so, over the
    baseline's standard deviation.
    """
    a, b = (torch.load(path, weights_only=True).double() for path in (ours, truth))
    if a.ndim == 1 and row.unit == "step" and len(b) > 1:
        return float(max((a[0] - b[0]).abs() / b[0].abs(), (a[1:] - b[1:]).norm() / b[1:].norm()))
    apart = (a - b).abs()
    return float((apart.mean() if row.mean else apart.max()) / b.std())
