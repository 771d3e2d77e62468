"""From files to files: which picture goes where, in what batches, and what became of each."""

import errno
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path

from basicsr.utils.edge_utils import EdgeMapGenerator
from basicsr.utils.errors import UserError
from basicsr.utils.grid import labelled_grid, png_bytes
from basicsr.utils.img_util import PICTURE_SUFFIXES, find_pictures, read_picture
from ldm.inference.picture import Picture, mark_of, marked
from ldm.inference.pipeline import Upscaler
from ldm.inference.tiled_vae import Watch, unwatched

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """A picture and the PNG file that it becomes."""

    source: Path
    target: Path

    def beside(self, what: str) -> Path:
        """The path of a picture that belongs to the result."""
        return self.target.with_name(f"{self.target.stem}_{what}.png")


@dataclass(frozen=True)
class Wanted:
    """What to write: bits per channel, the edge maps of input and result, a before/after strip; and over old files."""

    bits: int = 8
    edges: bool = False
    compare: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.bits not in (8, 16):
            raise UserError(f"--bits is {self.bits}: PNG files have 8 or 16")

    def files(self, job: Job) -> list[Path]:
        """The files of a job, the result last: where it is there, the job was finished."""
        extras = ["edges_input", "edges"] * self.edges + ["compare"] * self.compare
        return [*map(job.beside, extras), job.target]


@dataclass
class Outcome:
    """What became of the jobs."""

    finished: list[Job] = field(default_factory=list)
    skipped: list[Job] = field(default_factory=list)
    failed: list[tuple[Job, str]] = field(default_factory=list)


class OutputError(UserError):
    """The output cannot be written, whatever the picture: going on is useless."""


def list_jobs(source: Path, output: Path) -> list[Job]:
    """One job for a file; for a folder one for each picture below it, in the same folders below `output`.

    Results are PNG files of the same name; where two pictures differ in their suffix alone, it is kept in the name.
    Raises UserError where there is no picture, and where a result would replace an input.
    """
    if not source.is_dir():
        if not source.exists():
            raise UserError(f"--input {source} is not there; give a picture or a folder of pictures")
        jobs = [Job(source, output / f"{source.stem}.png")]
    else:
        if output.resolve() == source.resolve():
            raise UserError(f"--output {output} is the input folder; choose another one")
        inside = output.resolve()
        files = [file for file in find_pictures(source, name="--input") if inside not in file.resolve().parents]
        if not files:
            raise UserError(f"--input {source} holds no pictures ({', '.join(sorted(PICTURE_SUFFIXES))})")
        stems = [file.with_suffix("") for file in files]
        names = [file.name if stems.count(stem) > 1 else stem.name for file, stem in zip(files, stems, strict=True)]
        jobs = [
            Job(file, output / file.parent.relative_to(source) / f"{name}.png")
            for file, name in zip(files, names, strict=True)
        ]
    for job in jobs:
        if job.target.resolve() == job.source.resolve():
            raise UserError(f"the result would replace {job.source}; choose another --output")
    return jobs


def check_names(jobs: Sequence[Job], wanted: Wanted) -> None:
    """Raise UserError where two jobs would write one file."""
    owner: dict[Path, Job] = {}
    for job in jobs:
        for file in wanted.files(job):
            if (other := owner.setdefault(file, job)) is not job:
                raise UserError(f"{other.source} and {job.source} would both be written to {file}; rename one of them")


def check_output(folder: Path, flag: str = "--output") -> None:
    """Make the folder and see that files can be written there. Raises OutputError where they cannot."""
    trial = folder / f".trial{os.getpid()}"
    try:
        write_whole(trial, b"\0")
    except OutputError as error:
        told = str(error).replace(str(trial), f"{flag} {folder}", 1)
        raise OutputError(told.replace("another --output", f"another {flag}")) from error
    trial.unlink()


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that is there whole or not at all: aside first, then renamed.

    Raises OutputError where there is no room or no permission.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(aside, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        advice = "no room on the disk: free some, or choose another --output" if full else "choose another --output"
        raise OutputError(f"{path} cannot be written ({error.strerror}); {advice}") from error


def upscale_files(upscaler: Upscaler, jobs: list[Job], wanted: Wanted, watch: Watch = unwatched) -> Outcome:
    """Upscale all that is not finished. One picture's failure does not stop the rest, it is noted.

    Raises OutputError where the output cannot be written.
    """
    check_names(jobs, wanted)
    outcome = Outcome()
    bar = iter(watch("pictures", jobs))
    for batch in _batches(upscaler, bar, wanted, outcome):
        try:
            results = upscaler.upscale([picture for _, picture in batch], watch)
        except UserError as error:
            outcome.failed += [(job, str(error)) for job, _ in batch]
            continue
        for (job, picture), result in zip(batch, results, strict=True):
            _write(upscaler, job, picture, result, wanted)
            outcome.finished.append(job)
            log.info("%s -> %s (%d x %d)", job.source, job.target, result.size[1], result.size[0])
    return outcome


def _batches(
    upscaler: Upscaler, jobs: Iterable[Job], wanted: Wanted, outcome: Outcome
) -> Iterator[list[tuple[Job, Picture]]]:
    """Read what is to be upscaled. Small pictures of one canvas size wait for each other, up to a full batch."""
    waiting: dict[tuple[int, int], list[tuple[Job, Picture]]] = {}
    for job in jobs:
        if not wanted.overwrite and all(file.exists() for file in wanted.files(job)):
            if mark_of(job.target) == _mark(upscaler, job, wanted):
                outcome.skipped.append(job)
            else:
                outcome.failed.append(
                    (
                        job,
                        f"{job.target} is there, made from another picture or with other settings; "
                        "--overwrite replaces it, or choose another --output",
                    )
                )
            continue
        try:
            picture = Picture.from_stored(read_picture(job.source))
            size = upscaler.canvas_size(picture)
            small = upscaler.is_small(picture)
        except MemoryError:
            outcome.failed.append((job, "not enough memory to read it; cut it up"))
            continue
        except UserError as error:
            outcome.failed.append((job, str(error)))
            continue
        if not small:
            yield [(job, picture)]
            continue
        batch = waiting.setdefault(size, [])
        batch.append((job, picture))
        if len(batch) == upscaler.settings.batch:
            yield waiting.pop(size)
    yield from waiting.values()


def _write(upscaler: Upscaler, job: Job, picture: Picture, result: Picture, wanted: Wanted) -> None:
    """The result, after what belongs to it."""
    if wanted.edges:
        edges = EdgeMapGenerator()
        for what, image in (("edges_input", picture), ("edges", result)):
            edge_map = Picture(edges.edges_01(image.rgb_01[None] * 2 - 1)[0].expand(3, -1, -1), grey=True)
            write_whole(job.beside(what), edge_map.to_png(8))
    if wanted.compare:
        strip = {"input, bicubic": upscaler.enlarged(picture), "upscaled": result}
        grid = labelled_grid({label: image.rgb_01[None] * 2 - 1 for label, image in strip.items()})
        write_whole(job.beside("compare"), png_bytes(grid))
    write_whole(job.target, marked(result.to_png(wanted.bits), _mark(upscaler, job, wanted)))


def _mark(upscaler: Upscaler, job: Job, wanted: Wanted) -> str:
    """What a result depends on, in short: the picture's file, the settings and the weights."""
    settings = replace(upscaler.settings, batch=1)  # which changes no result
    settings_text = repr((settings, wanted.bits, upscaler.networks.identity)).encode()
    return blake2b(settings_text + job.source.read_bytes(), digest_size=16).hexdigest()
