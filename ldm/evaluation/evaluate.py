"""An evaluation from beginning to end: what is there, what is missing, the report; once or again and again."""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from basicsr.utils.errors import UserError
from ldm.evaluation.page import write_page
from ldm.evaluation.pictures import Picture, check_border, given_pictures, made_pictures
from ldm.evaluation.records import Record, Settings
from ldm.evaluation.runs import Run, open_runs, select_checkpoints
from ldm.evaluation.summary import FILE, Report, make_report, save_report
from ldm.evaluation.work import choose_devices, compute
from ldm.inference.folder import check_output
from ldm.inference.settings import Sampler

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """What the command line asks for."""

    runs: list[str]
    data: str
    out: Path
    lq: str | None = None
    checkpoints: str = "all"
    steps: int = 50
    sampler: Sampler = "ddpm"
    seed: int = 23
    border: int | None = None  # None: the scale factor
    lpips: bool = False
    devices: int = 1


@dataclass
class Evaluation:
    """Runs, pictures and settings that stay; checkpoints are looked for at every call.

    Raises:
        UserError: see `open_runs`, `given_pictures`, `made_pictures`, `Settings`, `choose_devices`; a folder `out` that
            holds something else.
    """

    options: Options
    runs: list[Run] = field(init=False)
    settings: Settings = field(init=False)
    pictures: list[Picture] = field(init=False)
    inputs: str = field(init=False)
    left_out: list[str] = field(init=False)

    def __post_init__(self) -> None:
        options = self.options
        self.devices = choose_devices(options.devices)
        _check_out(options.out)
        self.runs = open_runs(options.runs)
        first = self.runs[0]
        sf = int(first.config.get("sf", 4))
        border = sf if options.border is None else options.border
        self.settings = Settings(options.steps, options.sampler, options.seed, sf, border, options.lpips)
        for run in self.runs:
            select_checkpoints(run, options.checkpoints)  # to complain of a mistyped choice before work begins
        if options.lq:
            self.inputs = f"degraded pictures from {options.lq}"
            self.pictures, self.left_out = given_pictures(options.data, options.lq, sf)
        else:
            self.inputs = f"degraded as in training of {first.name}, seed {options.seed}"
            others = [run.name for run in self.runs[1:] if _degrades_otherwise(run, first)]
            if others:
                self.inputs += f" (not as in {', '.join(others)}, which trained with another degradation)"
            self.pictures, self.left_out = made_pictures(options.data, first.config, options.seed, options.out / "lq")
        check_border(self.pictures, border)
        for line in self.left_out:
            log.warning("left out: %s", line)
        log.info("%d pictures, %s", len(self.pictures), self.inputs)

    def __call__(self, patient: bool = False) -> Report | None:
        """Compute what is missing and write the report.

        Args:
            patient: a run without checkpoints is no error, and a checkpoint that cannot be read is passed over in
                silence, for both may change.

        Returns:
            The report; None where there is nothing to report yet.
        """
        records, unreadable = self._records(patient)
        missing = [record for record in records if record.read() is None]
        log.info("%d results, %d of them to compute", len(records), len(missing))
        unusable = [*unreadable, *compute(missing, self.devices)]
        for line in unusable if not patient else []:
            log.warning("left out: %s", line)
        if patient and all(record.read() is None for record in records):
            return None
        report = make_report(self.options.out, records, self.settings, self.inputs, [*self.left_out, *unusable])
        save_report(report)
        write_page(report)
        return report

    def watch(self, pause: float) -> Iterator[Report]:
        """A report whenever there are new checkpoints, until every run has one of its last step."""
        seen: object = None
        while True:
            found = [select_checkpoints(run, self.options.checkpoints)[0] for run in self.runs]
            if found != seen and (report := self(patient=True)):
                yield report
            seen = found
            if all(each and 0 <= run.max_steps <= each[-1].step for run, each in zip(self.runs, found, strict=True)):
                return
            time.sleep(pause)

    def _records(self, patient: bool) -> tuple[list[Record], list[str]]:
        """The places of all results, sorted by run and checkpoint, and a line for each unreadable checkpoint."""
        records, unreadable = [], []
        for run in self.runs:
            checkpoints, spoilt = select_checkpoints(run, self.options.checkpoints)
            unreadable += spoilt
            if not checkpoints and not patient:
                why = f": {spoilt[0]}" if spoilt else f" in {run.checkpoints}; train it first, or use --watch to wait"
                raise UserError(f"--run {run.name} has no checkpoint{why}")
            folder = self.options.out / "restored"
            records += [
                Record(run, checkpoint, picture, self.settings, folder)
                for checkpoint in checkpoints for picture in self.pictures
            ]  # fmt: skip
        return records, unreadable


def _degrades_otherwise(run: Run, first: Run) -> bool:
    keys = ("degradation", "sf", "data.params.validation.params")
    of_pictures = ("gt_path", "face_gt_path", "meta_info", "num_face", "image_type", "skip_small")

    def recipe(each: Run) -> list[object]:
        values = [each.config.get(key) for key in keys]
        return [{k: v for k, v in value.items() if k not in of_pictures} if isinstance(value, dict) else value
                for value in values]  # fmt: skip

    return recipe(run) != recipe(first)


def _check_out(out: Path) -> None:
    """A report may be gone on with; anything else is not touched."""
    if out.is_dir() and any(out.iterdir()) and not any((out / name).exists() for name in (FILE, "restored", "lq")):
        raise UserError(f"--out {out} holds other files: name a folder that is new, or a report to go on with")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file: name a folder")
    check_output(out, "--out")
