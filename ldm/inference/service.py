"""Upscales for people in front of a page: checked, one at a time, stopped, and refused in a sentence; no Gradio."""

import shutil
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from torch import nn

from basicsr.utils.errors import FieldError, UserError
from basicsr.utils.img_util import opened, read_picture
from ldm.inference.networks import Networks
from ldm.inference.picture import Picture
from ldm.inference.pipeline import NotEnoughMemoryError, Upscaler
from ldm.inference.settings import UpscaleSettings
from ldm.inference.tiled_vae import Progress, no_progress

NO_MEMORY = "There is not enough memory for a result of this size; choose a smaller Factor or a smaller picture"
# What the page calls the settings.
LABELS = {
    "upscale": "Factor", "steps": "Steps", "sampler": "Sampler", "colorfix": "Colours", "seed": "Seed",
    "guidance_scale": "Guidance", "prompt": "Prompt", "negative_prompt": "Negative prompt", "dec_w": "Faithfulness",
}  # fmt: skip


class StoppedError(Exception):
    """The upscale was told to stop."""


class Stop(threading.Event):
    """Set from another thread, it ends an upscale before the network's next call."""

    def check(self, *_: object) -> None:
        """Raises StoppedError once it is set."""
        if self.is_set():
            raise StoppedError


@dataclass(frozen=True)
class Comparison:
    """Two PNG files of one size: the input enlarged by bicubic interpolation, and the upscaled picture."""

    before: Path
    after: Path
    size: tuple[int, int]  # height and width, pixels
    seconds: float


class Service:
    """Upscales files that people hand in with one set of networks.

    max_pixels: what a picture, and its result, may have at most.
    """

    def __init__(self, networks: Networks, max_pixels: int) -> None:
        self.networks = networks
        self.max_pixels = max_pixels
        self._one_at_a_time = threading.Lock()

    def open(self, file: Path) -> Picture:
        """The picture in a file; its size is looked at before it is decoded. Raises UserError as a sentence."""
        with friendly_errors(file):
            with opened(file, sys.maxsize) as header:
                width, height = header.size
            if width * height > self.max_pixels:
                raise UserError(
                    f"it is {width} × {height} pixels, and this page takes up to {_megapixels(self.max_pixels)}; "
                    "choose a smaller picture"
                )
            picture = Picture.from_stored(read_picture(file, self.max_pixels))
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

    def upscale(
        self, file: Path, settings: UpscaleSettings, place: Path, stop: Stop, progress: Progress = no_progress
    ) -> Comparison:
        """Upscale a file; the result is in a new folder below `place`.

        Raises:
            StoppedError: `stop` was set, by whatever thread.
            UserError: it cannot be done; the message is a sentence.
        """

        def stoppable(stage: str, parts: Iterable[Any]) -> Iterator[Any]:
            for part in progress(stage, parts):
                stop.check()
                yield part

        start = time.monotonic()
        with self._one_at_a_time:
            stop.check()
            picture = self.open(file)
            size = self.result_size(picture.size, settings.upscale)
            denoiser: nn.Module = self.networks.model.model.diffusion_model
            # A step of a large picture is many calls of the network: stopping does not wait for all of them.
            with friendly_errors(file), denoiser.register_forward_pre_hook(stop.check):
                upscaler = Upscaler(self.networks, settings)
                (result,) = upscaler.upscale([picture], stoppable)
        place.mkdir(parents=True, exist_ok=True)
        folder = Path(mkdtemp(dir=place))
        before, after = folder / f"{file.stem}_bicubic.png", folder / f"{file.stem}_x{settings.upscale:g}.png"
        try:
            before.write_bytes(upscaler.enlarged(picture).to_png(8))
            after.write_bytes(result.to_png(8))
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise UserError(f"The result cannot be stored on this page's machine ({error.strerror})") from error
        return Comparison(before, after, size, time.monotonic() - start)


@contextmanager
def friendly_errors(file: Path) -> Iterator[None]:
    """What the library says of a file and of settings in the words of a page: its name for the path, labels for fields.

    Raises:
        UserError: in place of any other UserError, and of a MemoryError.
    """
    try:
        yield
    except (NotEnoughMemoryError, MemoryError) as error:  # the library speaks of tiles, which the page does not offer
        raise UserError(NO_MEMORY) from error
    except FieldError as error:
        raise UserError(f"{LABELS.get(error.field, error.field)} {error.problem}") from error
    except UserError as error:
        reason = str(error).removeprefix(f"{file}: ").removesuffix("; replace or remove it")
        raise UserError(f"{file.name}: {reason}") from error


def _megapixels(pixels: int) -> str:
    return f"{pixels / 1e6:.3g} megapixels"
