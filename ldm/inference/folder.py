"""From files to files: which picture goes where, in what batches, and what became of each."""

import logging
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Literal, TypeVar

from basicsr.utils.edge_utils import EdgeMapGenerator
from basicsr.utils.errors import FieldError, UserError
from basicsr.utils.files import OutputError, digest, write_whole
from basicsr.utils.grid import labelled_grid, png_bytes
from basicsr.utils.img_util import MAX_PIXELS, PICTURE_SUFFIXES, find_pictures, read_picture
from basicsr.utils.ranges import to_pm1
from basicsr.utils.retries import check_retries, with_retries
from ldm.inference.edges import edge_file, without_edge_files
from ldm.inference.picture import Picture, mark_of
from ldm.inference.pipeline import Upscaler
from ldm.inference.tiled_vae import Progress, no_progress

log = logging.getLogger(__name__)

Item = TypeVar("Item")
EdgePlace = Path | Literal["beside"] | None  # where pictures of edges are: see `list_tasks`


@dataclass(frozen=True)
class UpscaleTask:
    """A picture and the PNG file that it becomes.

    edges: the picture of its edges, where it comes with one. reference: a picture that the result is drawn towards.
    """

    source: Path
    target: Path
    edges: Path | None = None
    reference: Path | None = None

    def beside(self, what: str) -> Path:
        """The path of a picture that belongs to the result."""
        return self.target.with_name(f"{self.target.stem}_{what}.png")


@dataclass(frozen=True)
class FileOptions:
    """What to read and write.

    bits: per channel of the results. edges: write the edge maps of input and result. edges_told: write the map that the
    model was told, which may be corrected and given back. compare: write a before/after strip. overwrite: replace
    finished results. max_pixels: of a picture that is read. retries: of reading one, see `with_retries`.

    Raises:
        FieldError: a value that cannot be.
    """

    bits: int = 8
    edges: bool = False
    edges_told: bool = False
    compare: bool = False
    overwrite: bool = False
    max_pixels: int = MAX_PIXELS
    retries: int = 0

    def __post_init__(self) -> None:
        if self.bits not in (8, 16):
            raise FieldError("bits", f"is {self.bits}: PNG files have 8 or 16")
        if self.max_pixels < 1:
            raise FieldError("max_pixels", f"is {self.max_pixels}: give 1 or more")
        check_retries(self.retries)

    def files(self, task: UpscaleTask) -> list[Path]:
        """The files of a task, the result last: where it is there, the task was finished."""
        extras = ["edges_input", "edges"] * self.edges + ["edges_told"] * self.edges_told + ["compare"] * self.compare
        return [*map(task.beside, extras), task.target]


@dataclass
class Outcome:
    """What became of the tasks; `done` is told of each whose files are all there."""

    done: Callable[[UpscaleTask], None] = lambda task: None
    finished: list[UpscaleTask] = field(default_factory=list)
    skipped: list[UpscaleTask] = field(default_factory=list)
    failed: list[tuple[UpscaleTask, UserError]] = field(default_factory=list)

    def finish(self, task: UpscaleTask) -> None:
        """Its files were written."""
        self.done(task)
        self.finished.append(task)

    def skip(self, task: UpscaleTask) -> None:
        """Its files were there."""
        self.done(task)
        self.skipped.append(task)


def list_tasks(
    source: Path, output: Path, edges: EdgePlace = None, looked_through: dict[str, int] | None = None
) -> list[UpscaleTask]:
    """One task for a file; for a folder one for each picture below it, in the same folders below `output`.

    edges: where pictures of edges are: beside their pictures, which are then no inputs themselves; in a folder; or, for
    a single input, a file; None for no such pictures. looked_through: see `list_pictures`.

    A result's name follows from its picture's alone, whatever lies beside it: cat.png becomes cat.png, and cat.jpg
    becomes cat.jpg.png.

    Raises:
        FieldError: there is no picture in `source`, or a result in `output` would replace an input.
    """
    real = _real_paths()
    if source.is_dir():
        if output.resolve() == source.resolve():
            raise FieldError("output", f"{output} is the input folder: choose another one")
        inside, found = output.resolve(), find_pictures(source, name="input", looked_through=looked_through)
        files = [file for file in found if not real(file)[0].is_relative_to(inside)]
        files = without_edge_files(files) if edges == "beside" else files
        if not files:
            raise FieldError("input", f"{source} holds no pictures ({', '.join(sorted(PICTURE_SUFFIXES))})")
    elif source.exists():
        files = [source]
    else:
        raise FieldError("input", f"{source} is not there: give a picture or a folder of pictures")
    tasks = [task_of(file, source, output, edges) for file in files]
    for task in tasks:
        if real(task.target) == real(task.source):
            raise FieldError("output", f"is {output}: the result would replace {task.source}; choose another one")
    return tasks


def _real_paths() -> Callable[[Path], tuple[Path, str]]:
    """From a path to its folder and name where no links lead elsewhere; each folder is looked at once."""
    folder = cache(Path.resolve)

    def real(path: Path) -> tuple[Path, str]:
        if path.is_symlink():
            path = path.resolve()
            return path.parent, path.name
        return folder(path.parent), path.name

    return real


def task_of(file: Path, source: Path, output: Path, edges: EdgePlace) -> UpscaleTask:
    """The task of a file below `source`, or of `source` itself."""
    folder = output if file == source else output / file.parent.relative_to(source)
    return UpscaleTask(file, folder / _result_name(file), _edges_of(file, source, edges))


def _edges_of(file: Path, source: Path, edges: EdgePlace) -> Path | None:
    if edges is None:
        return None
    if edges != "beside" and edges.is_file():
        if source.is_dir():
            raise FieldError("edges", f"is {edges}, one picture for all of {source}: give a folder of them")
        return edges
    below = file.relative_to(source) if source.is_dir() else Path(file.name)
    return edge_file(file, None if edges == "beside" else edges, below)


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
    upscaler: Upscaler,
    tasks: list[UpscaleTask],
    options: FileOptions,
    progress: Progress = no_progress,
    done: Callable[[UpscaleTask], None] = lambda task: None,
) -> Outcome:
    """Upscale all that is not finished. One picture's failure does not stop the rest, it is noted.

    `done` is told of each task whose files are all there, by whichever thread sees to it.

    The next pictures are read, and the last ones written, while others are computed. Whatever ends this, also Ctrl-C,
    what was computed is written.

    Raises:
        OutputError: the output cannot be written, whatever the picture.
        UserError: two tasks would write one file.
    """
    check_names(tasks, options)
    outcome = Outcome(done)
    batches = read_ahead(_batches(upscaler, progress("pictures", tasks), options, outcome))
    with ThreadPoolExecutor(1, "writing") as thread, closing(batches):
        writing: Future[None] | None = None
        for batch in batches:
            results: Sequence[Picture | UserError]
            try:
                results = _upscaled(upscaler, batch, progress)
            except UserError as error:
                # One of several may be at fault, or their number.
                results = [_alone(upscaler, each, progress) for each in batch] if len(batch) > 1 else [error]
            if writing is not None:
                writing.result()  # for its errors; and no more than one batch waits in memory
            writing = thread.submit(_finish, upscaler, batch, results, options, outcome)
        if writing is not None:
            writing.result()
    place = {task: index for index, task in enumerate(tasks)}
    outcome.failed.sort(key=lambda failure: place[failure[0]])  # whichever thread noted it first
    return outcome


def read_ahead(items: Iterator[Item]) -> Generator[Item, None, None]:
    """The same items, each of which is made in a thread while the one before is being used."""
    with ThreadPoolExecutor(1, "reading") as thread:
        upcoming = thread.submit(next, items, None)
        while (item := upcoming.result()) is not None:
            upcoming = thread.submit(next, items, None)
            yield item


def _finish(
    upscaler: Upscaler,
    batch: Sequence["_Read"],
    results: Sequence[Picture | UserError],
    options: FileOptions,
    outcome: Outcome,
) -> None:
    """Write what became of a batch, and note it."""
    for read, result in zip(batch, results, strict=True):
        task = read.task
        if isinstance(result, UserError):
            outcome.failed.append((task, result))
            continue
        _write(upscaler, read, result, options)
        outcome.finish(task)
        log.info("%s -> %s (%d x %d)", task.source, task.target, result.size[1], result.size[0])


@dataclass(frozen=True)
class _Read:
    """What a task's files hold; mark: what its result is to be known by."""

    task: UpscaleTask
    mark: str
    picture: Picture
    edges: Picture | None
    reference: Picture | None

    @classmethod
    def of(cls, upscaler: Upscaler, task: UpscaleTask, options: FileOptions) -> "_Read":
        def read(file: Path) -> Picture:
            return Picture.from_stored(with_retries(lambda: read_picture(file, options.max_pixels), options.retries))

        edges, reference = (None if file is None else read(file) for file in (task.edges, task.reference))
        return cls(task, _mark(upscaler, task, options), read(task.source), edges, reference)


def _upscaled(upscaler: Upscaler, batch: Sequence[_Read], progress: Progress) -> list[Picture]:
    references = [read.reference for read in batch if read.reference is not None]
    edges = [read.edges for read in batch]
    return upscaler.upscale([read.picture for read in batch], progress, edges, references=references or None)


def _alone(upscaler: Upscaler, read: _Read, progress: Progress) -> Picture | UserError:
    try:
        return _upscaled(upscaler, [read], progress)[0]
    except UserError as error:
        return error


def _batches(
    upscaler: Upscaler, tasks: Iterable[UpscaleTask], options: FileOptions, outcome: Outcome
) -> Iterator[list[_Read]]:
    """Read what is to be upscaled. Small pictures of one canvas size wait for each other, up to a full batch."""
    waiting: dict[tuple[int, int], list[_Read]] = {}
    for task in tasks:
        try:
            if task.edges is not None and not task.edges.is_file():
                raise UserError(f"the picture of its edges, {task.edges}, is not there")
            if _is_finished(upscaler, task, options):
                outcome.skip(task)
                continue
            read = _Read.of(upscaler, task, options)
            size = upscaler.canvas_size(read.picture)
            small = upscaler.is_small(read.picture)
        except MemoryError:
            outcome.failed.append((task, UserError("not enough memory to read it; cut it up")))
            continue
        except UserError as error:
            outcome.failed.append((task, error))
            continue
        if not small:
            yield [read]
            continue
        batch = waiting.setdefault(size, [])
        batch.append(read)
        if len(batch) == upscaler.batch:
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


def _write(upscaler: Upscaler, read: _Read, result: Picture, options: FileOptions) -> None:
    """The result, after what belongs to it."""
    task, told = read.task, upscaler.edge_map(read.picture, read.edges)
    if options.edges:
        edges = EdgeMapGenerator()
        for what, image in (("edges_input", read.picture), ("edges", result)):
            edge_map = Picture(edges.edges_01(to_pm1(image.rgb_01[None]))[0].expand(3, -1, -1), grey=True)
            write_whole(task.beside(what), edge_map.to_png(8))
    if options.edges_told and told is not None:
        write_whole(task.beside("edges_told"), told.to_png(8))
    if options.compare:
        strip = {"input, bicubic": upscaler.enlarged(read.picture)}
        strip |= {} if told is None else {"edges told": told}
        grid = labelled_grid(
            {label: to_pm1(image.rgb_01[None]) for label, image in (strip | {"upscaled": result}).items()}
        )
        write_whole(task.beside("compare"), png_bytes(grid))
    write_whole(task.target, result.to_png(options.bits, read.mark))


def _mark(upscaler: Upscaler, task: UpscaleTask, options: FileOptions) -> str:
    """What a result depends on, in short: the picture's file and that of its edges, the settings and the weights."""
    settings = replace(upscaler.settings, batch=1)  # which changes no result
    files = (task.source, task.reference, task.edges)
    contents = [b"" if file is None else _content(file, options.retries) for file in files]
    return digest(repr((settings, options.bits, upscaler.networks.identity)), *contents)


def _content(file: Path, retries: int) -> bytes:
    try:
        return with_retries(file.read_bytes, retries)
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from error


def made_from(upscaler: Upscaler, options: FileOptions) -> str:
    """What all results depend on, in short."""
    settings = replace(upscaler.settings, batch=1)
    kinds = (options.bits, options.edges, options.edges_told, options.compare)
    return digest(repr((settings, kinds, upscaler.networks.identity)))
