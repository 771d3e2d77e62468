"""What was computed, kept as one picture and one small file of numbers for each checkpoint and picture.

Both names carry a digest of all that the restored picture depends on, so nothing is ever taken for something else, and
a changed setting leaves the earlier results where they are.
"""

import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from basicsr.metrics.measure import Lpips, measure
from basicsr.utils.errors import UserError
from basicsr.utils.rng import derived_seed
from ldm.evaluation.pictures import Picture, read_frames, read_tensor, save_picture
from ldm.evaluation.restore import restore
from ldm.evaluation.runs import Checkpoint, Run, digest
from ldm.inference.networks import Networks
from ldm.inference.settings import Sampler

METRICS_VERSION = 1  # to be raised whenever a metric gives another value: stored numbers are then computed anew


@dataclass(frozen=True)
class Settings:
    """What an evaluation's numbers depend on, beside checkpoint and pictures.

    Raises:
        UserError: a number out of range.
    """

    steps: int
    sampler: Sampler
    seed: int
    sf: int
    border: int  # pixels cut off before measuring
    lpips: bool

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"--steps {self.steps}: give 1 or more")
        if self.border < 0:
            raise UserError(f"--border {self.border}: give 0 pixels or more")


@dataclass(frozen=True)
class Record:
    """The place of one result."""

    run: Run
    checkpoint: Checkpoint
    picture: Picture
    settings: Settings
    folder: Path  # of all restored pictures

    @property
    def restored(self) -> Path:
        """The restored picture's file."""
        key = digest(
            self.checkpoint.identity, self.run.config.get("model"), self.picture.lq_identity, self.picture.name,
            self.settings.steps, self.settings.sampler, self.settings.seed, self.settings.sf,
        )  # fmt: skip
        step = f"step{self.checkpoint.step:06d}"
        return self.folder / self.run.name / step / f"{self.picture.name}-{key[:12]}.png"

    @property
    def _measured_from(self) -> dict[str, Any]:
        return {"gt": self.picture.gt_identity, "border": self.settings.border, "version": METRICS_VERSION}

    def read(self) -> dict[str, float] | None:
        """The metrics, NaN where one is not defined; None where they are not there or were measured otherwise."""
        try:
            stored = json.loads(self.restored.with_suffix(".json").read_text())
        except (OSError, ValueError):
            return None
        metrics = {name: math.nan if value is None else value for name, value in stored["metrics"].items()}
        if stored["measured_from"] != self._measured_from or (self.settings.lpips and "lpips" not in metrics):
            return None
        return metrics if self.settings.lpips else {name: metrics[name] for name in metrics if name != "lpips"}

    def write(self, metrics: dict[str, float]) -> None:
        """Store the metrics; the file appears whole or not at all."""
        finite = {name: None if math.isnan(value) else value for name, value in metrics.items()}
        about = {"checkpoint": str(self.checkpoint.path), "step": self.checkpoint.step, "picture": self.picture.name}
        content = {**about, "settings": asdict(self.settings), "measured_from": self._measured_from, "metrics": finite}
        write_whole(self.restored.with_suffix(".json"), json.dumps(content, indent=1))

    def measure(self, lpips: Lpips | None) -> None:
        """Measure the restored picture, which is there, and store the numbers."""
        gt_01 = read_frames(self.picture, self.settings.sf).gt_01
        sr_01 = read_tensor(self.restored)
        metrics = measure(sr_01, gt_01, self.settings.border)
        if lpips is not None:
            metrics["lpips"] = lpips(sr_01, gt_01, self.settings.border)
        self.write(metrics)

    def restore(self, networks: Networks) -> None:
        """Restore the picture and store it."""
        lq_01 = read_frames(self.picture, self.settings.sf).lq_01
        seed = derived_seed("evaluation", self.settings.seed, self.picture.name)
        save_picture(restore(networks, lq_01, self.settings.steps, seed, self.settings.sampler), self.restored)


def write_whole(path: Path, text: str) -> None:
    """Write a text file that appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}.tmp")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)
