"""What was computed, kept as one picture and one small file of numbers for each checkpoint and picture.

Both names carry a digest of all that the restored picture depends on, so nothing is ever taken for something else, and
a changed setting leaves the earlier results where they are.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from basicsr.metrics.measure import Lpips, measure
from basicsr.metrics.table import METRICS
from basicsr.utils.errors import UserError
from basicsr.utils.files import digest, write_whole
from basicsr.utils.rng import derived_seed
from ldm.evaluation.measure.pictures import PicturePair, read_frames, read_tensor, save_picture
from ldm.evaluation.measure.restore import restore
from ldm.evaluation.measure.sources import Folder, Source
from ldm.evaluation.report.summary import OPTIONAL, CheckpointResult, Report, RunResult, Settings, numbers_from
from ldm.inference.networks import Networks

METRICS_VERSION = 1  # to be raised whenever a metric gives another value: stored numbers are then computed anew


@dataclass(frozen=True)
class Record:
    """The place of one result."""

    source: Source
    picture: PicturePair
    settings: Settings
    folder: Path  # of all restored pictures

    @property
    def numbers(self) -> Path:
        """The metrics' file."""
        key = digest(self.source.key(self.picture, self.settings))
        return self.folder / self.source.place / f"{self.picture.name}-{key[:12]}.json"

    @property
    def restored(self) -> Path:
        """The restored picture's file."""
        if isinstance(self.source, Folder):
            return self.source.files[self.picture.name].resolve()
        return self.numbers.with_suffix(".png")

    @property
    def _measured_from(self) -> dict[str, Any]:
        return {"gt": self.picture.gt_identity, "border": self.settings.border, "version": METRICS_VERSION}

    @property
    def _lpips_from(self) -> str:
        """Network and weights, so that numbers of one are not taken for another's."""
        return f"{self.settings.lpips} {self.settings.lpips_weights}"

    def read(self) -> dict[str, float] | None:
        """The metrics, NaN where one is not defined; None where they are not there or were measured otherwise.

        Raises:
            UserError: the file is damaged.
        """
        try:
            stored = json.loads(self.numbers.read_bytes())
            metrics = numbers_from(stored["metrics"])
            if stored["measured_from"] != self._measured_from:
                return None
            if self.settings.lpips and stored.get("lpips_from") != self._lpips_from:
                return None
            wanted = [name for name in METRICS if name not in OPTIONAL or self.settings.lpips]
            return {name: metrics[name] for name in wanted}
        except FileNotFoundError:
            return None
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(f"{self.numbers} is damaged") from error

    def measure(self, lpips: Lpips | None) -> None:
        """Measure the restored picture, which is there, and store the numbers.

        Raises:
            UserError: it cannot be read, or has another size than the true one.
        """
        gt_01 = read_frames(self.picture, self.settings.sf).gt_01
        sr_01 = _fitting(read_tensor(self.restored), gt_01, self)
        metrics = measure(sr_01, gt_01, self.settings.border)
        if lpips is not None:
            metrics["lpips"] = lpips(sr_01, gt_01, self.settings.border)
        finite = {name: None if math.isnan(value) else value for name, value in metrics.items()}
        about = {"checkpoint": self.source.path, "step": self.source.step, "picture": self.picture.name}
        about |= {"lpips_from": self._lpips_from}
        content = {**about, "settings": asdict(self.settings), "measured_from": self._measured_from, "metrics": finite}
        write_whole(self.numbers, json.dumps(content, indent=1))

    def restore(self, networks: Networks | None) -> None:
        """Restore the picture, without networks by enlarging alone, and store it."""
        result_01 = read_frames(self.picture, self.settings.sf).lq_01
        if networks is not None:
            seed = derived_seed("evaluation", self.settings.seed, self.picture.name)
            result_01 = restore(networks, result_01, self.settings.steps, seed, self.settings.sampler)
        save_picture(result_01, self.restored)


def collect(
    folder: Path,
    results: Sequence[tuple[Record, dict[str, float]]],
    settings: Settings,
    inputs: str,
    left_out: Sequence[str],
) -> Report:
    """A report of what has been computed.

    Raises:
        UserError: that is nothing.
    """
    runs: dict[str, dict[int | None, CheckpointResult]] = {}
    about = {record.source.name: record.source for record, _ in results}
    labels = [source.label for source in about.values()]
    pictures = {}
    for record, metrics in results:
        source, picture = record.source, record.picture
        by_step = runs.setdefault(source.name, {})
        result = by_step.setdefault(source.step, CheckpointResult(source.step, source.path, {}, {}))
        result.pictures[picture.name] = metrics
        inside = record.restored.is_relative_to(folder)
        result.restored[picture.name] = (record.restored.relative_to(folder) if inside else record.restored).as_posix()
        files = {"gt": picture.gt, "lq": picture.lq}
        pictures[picture.name] = {kind: str(file.resolve()) for kind, file in files.items() if file is not None}
    if not runs:
        raise UserError("nothing could be evaluated" + "".join(f"; {line}" for line in left_out[:1]))
    arms = tuple(
        RunResult(
            name,
            source.label if labels.count(source.label) == 1 else name,
            source.edge_loss_weight,
            tuple(runs[name].values()),
        )
        for name, source in about.items()
    )
    return Report(folder, settings, inputs, pictures, arms, tuple(left_out))


def _fitting(sr_01: Tensor, gt_01: Tensor, record: Record) -> Tensor:
    """A restored picture that may still have the rows and columns that the scale factor does not divide."""
    if sr_01.shape != gt_01.shape and sr_01.shape == read_tensor(record.picture.gt).shape:
        return sr_01[:, : gt_01.shape[1], : gt_01.shape[2]]
    if sr_01.shape != gt_01.shape:
        (height, width), (gt_height, gt_width) = sr_01.shape[1:], gt_01.shape[1:]
        raise UserError(
            f"{record.restored} is {width}x{height} pixels, but its true picture, {record.picture.gt}, is measured at "
            f"{gt_width}x{gt_height}: give results of that size"
        )
    return sr_01
