"""From files to files: which picture goes where, in what batches, and what became of each."""

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from basicsr.utils.edge_utils import EdgeMapGenerator
from basicsr.utils.errors import FieldError, UserError
from basicsr.utils.files import OutputError, digest, write_whole
from basicsr.utils.grid import labelled_grid, png_bytes
from basicsr.utils.img_util import MAX_PIXELS, PICTURE_SUFFIXES, find_pictures, read_picture
from basicsr.utils.ranges import to_pm1
from ldm.inference.picture import Picture, mark_of
from ldm.inference.pipeline import Upscaler
from ldm.inference.tiled_vae import Progress, no_progress

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class UpscaleTask:
    """A picture and the PNG file that it becomes."""

    source: Path
    target: Path

    def beside(self, what: str) -> Path:
        """The path of a picture that belongs to the result."""
        return self.target.with_name(f"{self.target.stem}_{what}.png")


@dataclass(frozen=True)
class FileOptions:
    """What to read and write.

    bits: per channel of the results. edges: write the edge maps of input and result. compare: write a before/after
    strip. overwrite: replace finished results. max_pixels: of a picture that is read.

    Raises:
        FieldError: a value that cannot be.
    """

    bits: int = 8
    edges: bool = False
    compare: bool = False
    overwrite: bool = False
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        if self.bits not in (8, 16):
            raise FieldError("bits", f"is {self.bits}: PNG files have 8 or 16")
        if self.max_pixels < 1:
            raise FieldError("max_pixels", f"is {self.max_pixels}: give 1 or more")

    def files(self, task: UpscaleTask) -> list[Path]:
        """The files of a task, the result last: where it is there, the task was finished."""
        extras = ["edges_input", "edges"] * self.edges + ["compare"] * self.compare
        return [*map(task.beside, extras), task.target]


@dataclass
class Outcome:
    """What became of the tasks."""

    finished: list[UpscaleTask] = field(default_factory=list)
    skipped: list[UpscaleTask] = field(default_factory=list)
    failed: list[tuple[UpscaleTask, UserError]] = field(default_factory=list)


def list_tasks(source: Path, output: Path) -> list[UpscaleTask]:
    """One task for a file; for a folder one for each picture below it, in the same folders below `output`.

    A result's name follows from its picture's alone, whatever lies beside it: cat.png becomes cat.png, and cat.jpg
    becomes cat.jpg.png.

    Raises:
        FieldError: there is no picture in `source`, or a result in `output` would replace an input.
    """
    if source.is_dir():
        if output.resolve() == source.resolve():
            raise FieldError("output", f"{output} is the input folder: choose another one")
        inside = output.resolve()
        files = [file for file in find_pictures(source, name="input") if inside not in file.resolve().parents]
        if not files:
            raise FieldError("input", f"{source} holds no pictures ({', '.join(sorted(PICTURE_SUFFIXES))})")
        folders = [output / file.parent.relative_to(source) for file in files]
    elif source.exists():
        files, folders = [source], [output]
    else:
        raise FieldError("input", f"{source} is not there: give a picture or a folder of pictures")
    tasks = [UpscaleTask(file, folder / _result_name(file)) for file, folder in zip(files, folders, strict=True)]
    for task in tasks:
        if task.target.resolve() == task.source.resolve():
            raise FieldError("output", f"is {output}: the result would replace {task.source}; choose another one")
    return tasks


def _result_name(file: Path) -> str:
    return f"{file.stem}.png" if file.suffix.lower() == ".png" else f"{file.name}.png"


def check_names(tasks: Sequence[UpscaleTask], options: FileOptions) -> None:
    """Raise UserError where two tasks would write one file."""
    owner: dict[Path, UpscaleTask] = {}
    for task in tasks:
        for file in options.files(task):
            if (other := owner.setdefault(file, task)) is not task:
                raise UserError(f"{other.source} and {task.source} would both be written to {file}; rename one of them")


def check_output(folder: Path, name: str = "output") -> None:
    """Make the folder and see that files can be written there. Raises FieldError where they cannot."""
    trial = folder / f".trial{os.getpid()}"
    try:
        write_whole(trial, b"\0")
    except OutputError as error:
        raise FieldError(name, f"{folder} cannot be written ({error.reason}): choose another one") from error
    trial.unlink()


def upscale_files(
    upscaler: Upscaler, tasks: list[UpscaleTask], options: FileOptions, progress: Progress = no_progress
) -> Outcome:
    """Upscale all that is not finished. One picture's failure does not stop the rest, it is noted.

    Raises:
        OutputError: the output cannot be written, whatever the picture.
        UserError: two tasks would write one file.
    """
    check_names(tasks, options)
    outcome = Outcome()
    for batch in _batches(upscaler, progress("pictures", tasks), options, outcome):
        results: Sequence[Picture | UserError]
        try:
            results = upscaler.upscale([picture for _, picture in batch], progress)
        except UserError as error:
            # One of several may be at fault, or their number.
            results = [_alone(upscaler, picture, progress) for _, picture in batch] if len(batch) > 1 else [error]
        for (task, picture), result in zip(batch, results, strict=True):
            if isinstance(result, UserError):
                outcome.failed.append((task, result))
                continue
            _write(upscaler, task, picture, result, options)
            outcome.finished.append(task)
            log.info("%s -> %s (%d x %d)", task.source, task.target, result.size[1], result.size[0])
    return outcome


def _alone(upscaler: Upscaler, picture: Picture, progress: Progress) -> Picture | UserError:
    try:
        return upscaler.upscale([picture], progress)[0]
    except UserError as error:
        return error


def _batches(
    upscaler: Upscaler, tasks: Iterable[UpscaleTask], options: FileOptions, outcome: Outcome
) -> Iterator[list[tuple[UpscaleTask, Picture]]]:
    """Read what is to be upscaled. Small pictures of one canvas size wait for each other, up to a full batch."""
    waiting: dict[tuple[int, int], list[tuple[UpscaleTask, Picture]]] = {}
    for task in tasks:
        try:
            if _is_finished(upscaler, task, options):
                outcome.skipped.append(task)
                continue
            picture = Picture.from_stored(read_picture(task.source, options.max_pixels))
            size = upscaler.canvas_size(picture)
            small = upscaler.is_small(picture)
        except MemoryError:
            outcome.failed.append((task, UserError("not enough memory to read it; cut it up")))
            continue
        except UserError as error:
            outcome.failed.append((task, error))
            continue
        if not small:
            yield [(task, picture)]
            continue
        batch = waiting.setdefault(size, [])
        batch.append((task, picture))
        if len(batch) == upscaler.settings.batch:
            yield waiting.pop(size)
    yield from waiting.values()


def _is_finished(upscaler: Upscaler, task: UpscaleTask, options: FileOptions) -> bool:
    """Whether all files of a task are there. Raises UserError where they were made from something else."""
    if options.overwrite or not all(file.exists() for file in options.files(task)):
        return False
    if mark_of(task.target) != _mark(upscaler, task, options):
        raise UserError(
            f"{task.target} is there, made from another picture or with other settings; overwrite replaces it, or "
            "choose another output"
        )
    return True


def _write(upscaler: Upscaler, task: UpscaleTask, picture: Picture, result: Picture, options: FileOptions) -> None:
    """The result, after what belongs to it."""
    if options.edges:
        edges = EdgeMapGenerator()
        for what, image in (("edges_input", picture), ("edges", result)):
            edge_map = Picture(edges.edges_01(to_pm1(image.rgb_01[None]))[0].expand(3, -1, -1), grey=True)
            write_whole(task.beside(what), edge_map.to_png(8))
    if options.compare:
        strip = {"input, bicubic": upscaler.enlarged(picture), "upscaled": result}
        grid = labelled_grid({label: to_pm1(image.rgb_01[None]) for label, image in strip.items()})
        write_whole(task.beside("compare"), png_bytes(grid))
    write_whole(task.target, result.to_png(options.bits, _mark(upscaler, task, options)))


def _mark(upscaler: Upscaler, task: UpscaleTask, options: FileOptions) -> str:
    """What a result depends on, in short: the picture's file, the settings and the weights."""
    settings = replace(upscaler.settings, batch=1)  # which changes no result
    return digest(repr((settings, options.bits, upscaler.networks.identity)), task.source.read_bytes())
