"""An evaluation from beginning to end: what is there, what is missing, the report; once or again and again."""

import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from basicsr.utils import checks
from basicsr.utils.errors import FieldError, UserError
from basicsr.utils.files import OutputError, write_whole
from basicsr.utils.retries import check_retries
from ldm.evaluation.measure.pictures import (
    PicturePair,
    check_border,
    given_pictures,
    made_pictures,
    true_pictures,
    with_edges,
)
from ldm.evaluation.measure.records import Record, collect
from ldm.evaluation.measure.runs import TrainedRun, open_runs, select_checkpoints
from ldm.evaluation.measure.sources import Bicubic, Folder, Source, Trained, missing_partners, open_arms
from ldm.evaluation.measure.work import compute
from ldm.evaluation.report.page import write_page
from ldm.evaluation.report.summary import CONDITIONS, FILE, Report, Sampler, Settings, save_report
from ldm.inference.sharing import Team

log = logging.getLogger(__name__)

SCALE = 4  # where no run says another


@dataclass(frozen=True)
class EvaluationOptions:
    """What the command line asks for; `runs`, `also` or both."""

    data: str
    out: Path
    runs: Sequence[str] = ()
    also: Sequence[str] = ()  # see `open_arms`
    lq: str | None = None
    conditions: Sequence[str] = ("edges",)  # keys of `CONDITIONS`, for runs that see edges
    edges: str | None = None  # the folder of condition `file`
    checkpoints: str = "all"
    steps: int = 50
    sampler: Sampler = "ddpm"
    seed: int = 23
    sf: int | None = None  # None: the first run's, else `SCALE`
    border: int | None = None  # None: the scale factor
    lpips: str = ""  # see `Settings`
    lpips_weights: str = ""
    devices: int = 1
    nodes: int = 1
    retries: int = 0  # of a picture whose files could not be read, see `with_retries`


@dataclass
class Evaluation:
    """Runs, other arms, pictures and settings that stay; checkpoints are looked for at every call.

    Raises:
        UserError: see `open_runs`, `open_arms`, `given_pictures`, `made_pictures`, `Settings`, `Team.of`; a
            folder `out` that holds something else.
    """

    options: EvaluationOptions
    runs: list[TrainedRun] = field(init=False)
    arms: list[Bicubic | Folder] = field(init=False)
    settings: Settings = field(init=False)
    pictures: list[PicturePair] = field(init=False)
    inputs: str = field(init=False)
    left_out: list[str] = field(init=False)
    team: Team = field(init=False)

    def __post_init__(self) -> None:
        options = self.options
        if not options.runs and not options.also:
            raise FieldError("run", "is missing: give a run, --also with pictures that are restored already, or both")
        _check_out(options.out)
        self.runs = open_runs(options.runs)
        sf = options.sf
        if sf is None:
            sf = int(self.runs[0].config.get("sf", SCALE)) if self.runs else SCALE
        border = sf if options.border is None else options.border
        lpips = options.lpips, options.lpips_weights
        self.settings = Settings(options.steps, options.sampler, options.seed, sf, border, *lpips)
        for run in self.runs:
            select_checkpoints(run, options.checkpoints)  # to complain of a mistyped choice before work begins
        self._check_conditions()
        check_retries(options.retries)
        self.team = Team.of(options.devices, options.nodes)
        # One process looks at the pictures for all.
        found = self.team.together(lambda: self._found_pictures() if self.team.first else None)
        self.pictures, self.left_out, self.inputs = self.team.agreed(found) or ([], [], "")
        check_border(self.pictures, border)
        self.arms = open_arms(options.also, [run.name for run in self.runs], self.pictures)
        for arm in self.arms:
            self.left_out += missing_partners(arm, self.pictures)
        for line in self.left_out:
            log.warning("left out: %s", line)
        log.info("%d pictures, %s", len(self.pictures), self.inputs)

    def __call__(self, *, patient: bool = False) -> Report | None:
        """Compute what is missing and write the report.

        Args:
            patient: a run without checkpoints is not an error, and a checkpoint that cannot be read is passed over in
                silence, for both may change.

        Returns:
            The report; None where there is nothing to report yet, and in all processes but the first.
        """
        records, unreadable = self._records(patient=patient)
        # The first process reads what is there, once: it is what the report is made of.
        known = [_stored(record) for record in records] if self.team.first else []
        missing = self.team.agreed([record for record, metrics in zip(records, known, strict=False) if metrics is None])
        log.info("%d results, %d of them to compute", len(records), len(missing))
        unusable = [*unreadable, *compute(missing, self.team, self.options.retries)]
        if not self.team.first:
            return None
        for line in unusable if not patient else []:
            log.warning("left out: %s", line)
        results = [
            (record, metrics)
            for record, before in zip(records, known, strict=True)
            if (metrics := _stored(record) if before is None else before) is not None
        ]
        if patient and not results:
            return None
        report = collect(self.options.out, results, self.settings, self.inputs, [*self.left_out, *unusable])
        save_report(report)
        write_page(report)
        return report

    def watch(self, pause: float) -> Iterator[Report]:
        """A report whenever there are new checkpoints, until every run has one of its last step."""
        seen: object = None
        while True:
            found = self.team.agreed([select_checkpoints(run, self.options.checkpoints)[0] for run in self.runs])
            if found != seen and (report := self(patient=True)):
                yield report
            seen = found
            if all(each and 0 <= run.max_steps <= each[-1].step for run, each in zip(self.runs, found, strict=True)):
                return
            time.sleep(pause)

    def _check_conditions(self) -> None:
        """Raise FieldError for conditions that there are not, or that no run is told of."""
        chosen = self.options.conditions
        if unknown := [each for each in chosen if each not in CONDITIONS]:
            raise checks.unknown("conditions", unknown[0], CONDITIONS)
        if len({*chosen}) < len(chosen) or not chosen:
            raise FieldError("conditions", f"is {','.join(chosen)}: give each once, and one at least")
        if ("file" in chosen) != (self.options.edges is not None):
            raise FieldError("edges", "and condition file belong together: it is the folder with pictures of edges")
        if tuple(chosen) != ("edges",) and not any(run.edge_use for run in self.runs):
            raise FieldError(
                "conditions", f"is {','.join(chosen)}: no run's model sees edges, there is nothing to tell"
            )
        if "gt" in chosen:
            log.warning("condition gt is an ORACLE: its models are told the true pictures' edges, which no use has")

    def _found_pictures(self) -> tuple[list[PicturePair], list[str], str]:
        """The pictures, a line for each that is left out, and where the degraded ones are from."""
        pictures, left_out, inputs = self._pairs()
        if self.options.edges:
            pictures = with_edges(pictures, self.options.edges)
        return pictures, left_out, inputs

    def _pairs(self) -> tuple[list[PicturePair], list[str], str]:
        options = self.options
        if options.lq:
            given = given_pictures(options.data, options.lq, self.settings.sf, options.retries)
            return *given, f"degraded pictures from {options.lq}"
        if not self.runs:
            return *true_pictures(options.data, options.retries), "not known, for the results were made elsewhere"
        first = self.runs[0]
        inputs = f"degraded as in training of {first.name}, seed {options.seed}"
        others = [run.name for run in self.runs[1:] if _degrades_otherwise(run, first)]
        if others:
            inputs += f" (not as in {', '.join(others)}, which trained with another degradation)"
        made = made_pictures(options.data, first.config, options.seed, options.out / "lq", options.retries)
        return *made, inputs

    def _records(self, *, patient: bool) -> tuple[list[Record], list[str]]:
        """The places of all results, sorted by arm and checkpoint, and a line for each unreadable checkpoint."""
        sources: list[Source] = []
        unreadable = []
        for run in self.runs:
            checkpoints, spoilt = select_checkpoints(run, self.options.checkpoints)
            unreadable += spoilt
            if not checkpoints and not patient:
                why = f": {spoilt[0]}" if spoilt else f" in {run.checkpoints}; train it first, or use --watch to wait"
                raise FieldError("run", f"{run.name} has no checkpoint{why}")
            conditions = self.options.conditions if run.edge_use else [""]
            sources += [Trained(run, checkpoint, each) for checkpoint in checkpoints for each in conditions]
        folder = self.options.out / "restored"
        records = [
            Record(source, picture, self.settings, folder)
            for source in [*sources, *self.arms]
            for picture in self.pictures
            if not isinstance(source, Folder) or picture.name in source.files
        ]
        return records, unreadable


def _stored(record: Record) -> dict[str, float] | None:
    """A record's metrics; None where they are still to be computed, and a line is said where they are damaged."""
    try:
        return record.read()
    except UserError as error:
        log.warning("%s: it is measured again", error)
        return None


def _degrades_otherwise(run: TrainedRun, first: TrainedRun) -> bool:
    keys = ("degradation", "sf", "data.params.validation.params")
    of_pictures = ("gt_path", "face_gt_path", "meta_info", "num_face", "image_type", "skip_small")

    def recipe(each: TrainedRun) -> list[object]:
        values = [each.config.get(key) for key in keys]
        return [
            {k: v for k, v in value.items() if k not in of_pictures} if isinstance(value, dict) else value
            for value in values
        ]

    return recipe(run) != recipe(first)


def _check_out(out: Path) -> None:
    """A report may be gone on with; anything else is not touched."""
    if out.is_dir() and any(out.iterdir()) and not any((out / name).exists() for name in (FILE, "restored", "lq")):
        raise FieldError("out", f"{out} holds other files: name a folder that is new, or a report to go on with")
    if out.exists() and not out.is_dir():
        raise FieldError("out", f"{out} is a file: name a folder")
    trial = out / f".trial{os.getpid()}"
    try:
        write_whole(trial, "")
    except OutputError as error:
        raise FieldError("out", f"{out} cannot be written: {error.reason}") from error
    trial.unlink()
