"""Upscales for people in front of a page: checked, one at a time, watched, stopped, and refused in a sentence."""

import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

from PIL import Image
from torch import nn

from basicsr.utils.errors import UserError
from basicsr.utils.img_util import read_picture
from ldm.inference.networks import Networks
from ldm.inference.picture import Picture
from ldm.inference.pipeline import Upscaler
from ldm.inference.settings import UpscaleSettings

POLL_S = 0.2  # between two looks at what a running upscale has done
NO_MEMORY = "There is not enough memory for a result of this size; choose a smaller Factor or a smaller picture"
# What the page calls the options, by their flag.
LABELS = {
    "upscale": "Factor", "steps": "Steps", "sampler": "Sampler", "colorfix": "Colours", "seed": "Seed",
    "guidance_scale": "Guidance", "prompt": "Prompt", "negative_prompt": "Negative prompt", "dec_w": "Faithfulness",
}  # fmt: skip


class StoppedError(Exception):
    """The upscale was told to stop."""


@dataclass(frozen=True)
class Progress:
    """How far an upscale is: parts done of the present stage; while it is `waiting`, the upscales before it."""

    stage: str
    done: int = 0
    total: int = 0
    seconds_left: float | None = None  # of this stage; None before its first part is done


@dataclass(frozen=True)
class Result:
    """Two PNG files of one size: the input enlarged by bicubic interpolation, and the upscaled picture."""

    before: Path
    after: Path
    size: tuple[int, int]  # height and width, pixels
    seconds: float


class Job:
    """One upscale: its progress may be read, and it may be stopped, from other threads."""

    def __init__(self) -> None:
        self.progress = Progress("waiting")
        self._stop = threading.Event()

    def stop(self) -> None:
        """End it before the network's next call."""
        self._stop.set()

    def check(self) -> None:
        """Raises StoppedError after `stop`."""
        if self._stop.is_set():
            raise StoppedError

    def watch(self, stage: str, parts: Iterable) -> Iterator:
        """A `Watch` for the upscaler that notes what is done."""
        parts = list(parts)
        start = time.monotonic()
        for done, part in enumerate(parts):
            self.check()
            left = (time.monotonic() - start) / done * (len(parts) - done) if done else None
            self.progress = Progress(stage, done, len(parts), left)
            yield part
        self.progress = Progress(stage, len(parts), len(parts), 0)


class Turns:
    """First come, first served, one at a time."""

    def __init__(self) -> None:
        self._line: list[object] = []

    @contextmanager
    def ticket(self) -> Iterator[Callable[[], int]]:
        """A place in the line for as long as the context lasts; gives a function that counts those before it."""
        place = object()
        self._line.append(place)
        try:
            yield lambda: self._line.index(place)
        finally:
            self._line.remove(place)


class Service:
    """Upscales files that people hand in with one set of networks; `folder` takes what it makes.

    max_pixels: what a picture, and its result, may have at most.
    """

    def __init__(self, networks: Networks, folder: Path, max_pixels: int) -> None:
        self.networks = networks
        self.folder = folder
        self.max_pixels = max_pixels
        self._turns = Turns()

    def open(self, file: Path) -> Picture:
        """The picture in a file; its size is looked at before it is decoded. Raises UserError as a sentence."""
        try:
            with Image.open(file) as header:
                width, height = header.size
        except Image.DecompressionBombError as error:
            raise UserError(f"{file.name} has far more pixels than fit; choose a smaller picture") from error
        except Exception:  # read_picture says what is wrong with it
            width = height = 0
        if width * height > self.max_pixels:
            raise UserError(
                f"{file.name} is {width} × {height} pixels, and this page takes up to "
                f"{_megapixels(self.max_pixels)}; choose a smaller picture"
            )
        with told_kindly(file):
            picture = Picture.from_stored(read_picture(file))
            Upscaler(self.networks, UpscaleSettings(upscale=1)).canvas_size(picture)  # refuses what is too small
            return picture

    def result_size(self, size: tuple[int, int], factor: float) -> tuple[int, int]:
        """Height and width that a picture of `size` will have. Raises UserError where they are above the limit."""
        height, width = (round(side * factor) for side in size)
        if height * width > self.max_pixels:
            largest = (self.max_pixels / (size[0] * size[1])) ** 0.5
            raise UserError(
                f"The result would be {width} × {height} pixels, and this page makes up to "
                f"{_megapixels(self.max_pixels)}; choose a Factor up to {int(largest * 10) / 10:g}"
            )
        return height, width

    def run(self, file: Path, settings: UpscaleSettings, job: Job) -> Iterator[Progress | Result]:
        """Upscale a file in a thread of its own: its progress whenever it changes, the result last.

        Raises StoppedError after `job.stop()`, and UserError, as a sentence, for what cannot be done.
        """
        with self._turns.ticket() as before:
            while waiting := before():
                job.check()
                yield Progress("waiting", total=waiting)
                time.sleep(POLL_S)
            ending: list[Result | BaseException] = []

            def work() -> None:
                try:
                    ending.append(self._upscaled(file, settings, job))
                except BaseException as error:  # raised again in the thread that waits
                    ending.append(error)

            worker = threading.Thread(target=work, daemon=True)
            worker.start()
            try:
                yield from _changes(job, worker)
            finally:  # also where whoever was watching has gone
                if worker.is_alive():
                    job.stop()
                worker.join()
        if isinstance(ending[0], BaseException):
            raise ending[0]
        yield ending[0]

    def _upscaled(self, file: Path, settings: UpscaleSettings, job: Job) -> Result:
        start = time.monotonic()
        job.progress = Progress("encoding")
        picture = self.open(file)
        self.result_size(picture.size, settings.upscale)
        upscaler = Upscaler(self.networks, settings)
        denoiser: nn.Module = self.networks.model.model.diffusion_model
        # A step of a large picture is many calls of the network: stopping does not wait for all of them.
        with told_kindly(file), denoiser.register_forward_pre_hook(lambda *_: job.check()):
            (result,) = upscaler.upscale([picture], job.watch)
        job.progress = Progress("saving")
        folder = Path(mkdtemp(dir=self.folder))
        before, after = folder / f"{file.stem}_bicubic.png", folder / f"{file.stem}_x{settings.upscale:g}.png"
        before.write_bytes(upscaler.enlarged(picture).to_png(8))
        after.write_bytes(result.to_png(8))
        return Result(before, after, result.size, time.monotonic() - start)


def _changes(job: Job, worker: threading.Thread) -> Iterator[Progress]:
    """Every progress of the job that is seen, until its thread has ended."""
    seen: Progress | None = None
    while worker.is_alive():
        if job.progress != seen:
            seen = job.progress
            yield seen
        worker.join(POLL_S)


@contextmanager
def told_kindly(file: Path) -> Iterator[None]:
    """What the command line would say of a file, in the words of a page: labels, not flags; its name, not its path."""
    try:
        yield
    except UserError as error:
        raise UserError(sentence(str(error), file)) from error
    except MemoryError as error:
        raise UserError(NO_MEMORY) from error


def sentence(message: str, file: Path) -> str:
    """A message of the library for people who see labels in place of flags, and know their file by its name."""
    if message.startswith("not enough memory"):  # tiles and batches, which it speaks of, are not for the page to choose
        return NO_MEMORY
    message = message.replace(f"{file}: ", f"{file.name} ").replace("replace or remove it", "choose another file")
    message = re.sub(r"--(\w+)", lambda flag: LABELS.get(flag[1], flag[1]), message)
    return re.sub(r"^it is (\d+) x (\d+) pixels", rf"{file.name} is \1 × \2 pixels", message)


def _megapixels(pixels: int) -> str:
    return f"{pixels / 1e6:.3g} megapixels"
