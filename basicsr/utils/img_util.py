"""Pictures on disk: finding them, and reading every common kind as RGB."""

import io
import logging
import os
import re
import threading
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from basicsr.utils import packs
from basicsr.utils.errors import FieldError, UserError

log = logging.getLogger(__name__)

PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
# Pictures with more pixels are refused, for a file of some kilobytes can claim any size: 1.5 GB of 8-bit RGB.
MAX_PIXELS = 500_000_000
_EXIF_ORIENTATION = 0x0112
_pillow_settings = threading.Lock()

Pixels = NDArray[Any]  # uint8 or uint16


def find_pictures(
    folder: str | os.PathLike[str],
    suffixes: Collection[str] = PICTURE_SUFFIXES,
    name: str = "folder",
    looked_through: dict[str, int] | None = None,
) -> list[Path]:
    """`list_pictures` as paths."""
    return [Path(path) for path in list_pictures(folder, suffixes, name, looked_through)]


def list_pictures(
    folder: str | os.PathLike[str],
    suffixes: Collection[str] = PICTURE_SUFFIXES,
    name: str = "folder",
    looked_through: dict[str, int] | None = None,
) -> list[str]:
    """All pictures below `folder`, in sorted order; hidden files and folders are left out, links are followed.

    A folder below it that cannot be read is left out and named in the log.

    Args:
        folder: where to look, recursively.
        suffixes: lower-case file suffixes with their dot; files match in any case.
        name: the field that `folder` comes from, for the error.
        looked_through: is given all folders that were, and when each was changed last, ns; 0 where that is not known.

    Raises:
        FieldError: `folder` is not there, is not a folder, or cannot be read. Finding nothing is not an error here.
    """
    times: dict[str, int] = {} if looked_through is None else looked_through
    if packs.is_pack(folder) or packs.is_remote(folder):
        times[os.fspath(folder)] = 0
        return _list_packed(folder, tuple(suffixes), name)
    root = Path(folder)
    if not root.is_dir():
        problem = "is a file, not a folder" if root.exists() else "does not exist"
        if not root.is_absolute():
            problem += f" (looked for in {Path.cwd()})"
        raise FieldError(name, f"is {folder}, which {problem}: give the folder that holds the pictures")
    found: list[str] = []
    visited: set[tuple[int, int]] = set()
    pending = [str(root)]
    while pending:
        place = pending.pop()
        times[place] = 0
        try:
            status = Path(place).stat()
            if (status.st_dev, status.st_ino) in visited:  # a link that leads back to a folder already listed
                del times[place]
                continue
            visited.add((status.st_dev, status.st_ino))
            pictures, folders = _entries(place, tuple(suffixes))
            times[place] = status.st_mtime_ns
        except OSError as error:
            if place == str(root):
                raise FieldError(name, f"is {folder}, which cannot be read ({error.strerror})") from error
            log.warning("%s: a folder is left out: %s (%s)", name, place, error.strerror)
            continue
        found += pictures
        pending += sorted(folders, reverse=True)
    return sorted(found)


def _list_packed(folder: str | os.PathLike[str], suffixes: tuple[str, ...], field: str) -> list[str]:
    """The pictures in a pack, or below a folder that is elsewhere."""
    try:
        names = packs.names_in(folder)
    except UserError as error:
        raise FieldError(field, f"is {folder}, which cannot be read: {error}") from error
    seen = (name for name in names if not re.search(r"(^|/)\.", name))
    return [f"{os.fspath(folder).rstrip('/')}/{name}" for name in seen if name.lower().endswith(suffixes)]


def _entries(folder: str, suffixes: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """The pictures and the folders that lie in one folder."""
    pictures, folders = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                folders.append(entry.path)
            elif entry.name.lower().endswith(suffixes):
                pictures.append(entry.path.removeprefix("./"))
    return pictures, folders


@dataclass(frozen=True)
class StoredPicture:
    """A picture as it is stored, the right way up, and what belongs to it."""

    pixels: Pixels  # (H, W, 1 to 4): grey, grey and alpha, RGB, or RGB and alpha; uint8 or uint16
    exif: bytes = b""  # without the orientation, for the picture has been turned
    icc_profile: bytes = b""  # only where it fits the channels


@contextmanager
def opened(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> Iterator[ImageFile.ImageFile]:
    """A picture whose header alone was read, with this limit on its size in place of Pillow's (179 million pixels).

    Raises:
        UserError: the file is missing, is not a picture, or has more than `max_pixels` pixels; whatever fails in the
            context is told as what is wrong with the picture, but a MemoryError.
    """
    try:
        if not Path(path).is_file() and Path(path).exists():
            raise UserError("it is not a file")  # to open a pipe would wait for ever
        # Given a file and not its name, Pillow does not map it into memory; where it does, it mixes up the rows of
        # uncompressed TIFFs whose orientation exchanges height and width.
        with io.BytesIO(packs.read(path)) if packs.packed(path) else Path(path).open("rb") as file:
            with _pillow_limit(max_pixels):
                picture = Image.open(file)
            with picture:
                yield picture
    except MemoryError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(
            f"{path}: has more than {max_pixels:,} pixels; raise max_pixels to read it, or make it smaller"
        ) from error
    except Exception as error:  # decoders fail on damaged files in every possible way
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = "its content is of no known type"
        elif isinstance(error, OSError) and error.strerror:
            reason = error.strerror
        raise UserError(f"{path}: cannot be read as a picture ({reason}); replace or remove it") from error


@contextmanager
def _pillow_limit(max_pixels: int) -> Iterator[None]:
    """Pillow's limit on the size of pictures is one for the whole process: it is lent to one thread at a time."""
    with _pillow_settings, warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)  # it warns at the limit, and fails at twice that
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, max_pixels
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def read_picture(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> StoredPicture:
    """The picture at `path` in the depth and with the channels that it is stored with.

    Palettes are looked up, CMYK is converted, EXIF orientation is applied, alpha is not multiplied into the colours.
    Of an animation or a file with several pages the first is read.

    Raises:
        UserError: the file is missing, is not a picture, is cut short, has more than `max_pixels` pixels, or holds
            32-bit samples, whose range is unknown.
    """
    with opened(path, max_pixels) as picture:
        # Pillow reads colour with 16 bits per channel as 8 bits; its raw mode tells that there was more.
        deep = next((kind for tile in picture.tile if ";16" in (kind := str(tile[3]))), "")
        with _pillow_limit(max_pixels) if picture.format == "TIFF" else nullcontext():  # a TIFF asks twice
            picture.load()  # also where OpenCV decodes below: OpenCV takes a file that is cut short without complaint
        return stored(picture, _read_deep(path, deep) if deep and picture.mode in ("RGB", "RGBA", "LA") else None)


def read_rgb(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> Pixels:
    """`read_picture` as RGB alone, (H, W, 3): grey is repeated over the channels.

    What is transparent is laid on white, as a browser shows it: under full transparency files hold arbitrary colours.
    """
    pixels = read_picture(path, max_pixels).pixels
    if pixels.shape[2] in (2, 4):
        pixels = _on_white(pixels)
    return np.ascontiguousarray(pixels if pixels.shape[2] == 3 else np.repeat(pixels, 3, axis=2))


def as_01(pixels: Pixels) -> NDArray[np.float32]:
    """uint8 or uint16 pixels -> float32 in [0, 1]."""
    return pixels.astype(np.float32) / np.float32(np.iinfo(pixels.dtype).max)


def read_rgb_01(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> NDArray[np.float32]:
    """`read_rgb` as float32 (H, W, 3) in [0, 1]."""
    return as_01(read_rgb(path, max_pixels))


def stored(picture: Image.Image, pixels: Pixels | None = None) -> StoredPicture:
    """A loaded picture of any mode; `pixels` replace those that Pillow has of it.

    Raises:
        UserError: it has 32 bits per sample.
    """
    if pixels is None:
        pixels = _pillow_pixels(picture)
    exif = picture.getexif()
    orientation = exif.pop(_EXIF_ORIENTATION, 1)  # Pillow has already turned a TIFF, and unset this
    channels_last = pixels[..., None] if pixels.ndim == 2 else pixels
    icc_profile = b"" if picture.mode in ("CMYK", "LAB", "YCbCr", "HSV") else picture.info.get("icc_profile") or b""
    # A TIFF's tags say how its own pixels are stored: they fit no other file.
    kept_exif = _exif_bytes(exif) if "exif" in picture.info else b""
    return StoredPicture(np.ascontiguousarray(_turned(channels_last, orientation)), kept_exif, icc_profile)


def _exif_bytes(exif: Image.Exif) -> bytes:
    """The tags as a block of bytes; none where cameras wrote what Pillow cannot write again."""
    try:
        return exif.tobytes() if exif else b""
    except Exception:  # it raises whatever the tags' values make struct and its own code raise
        return b""


def _read_deep(path: str | os.PathLike[str], kind: str) -> Pixels | None:
    """16-bit colour, or grey with alpha, through OpenCV: uint16 (H, W, 2 to 4).

    None where OpenCV cannot (TIFFs with an orientation). `kind`: Pillow's raw mode.
    """
    content = packs.read(path) if packs.packed(path) else Path(path).read_bytes()
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16 or pixels.ndim != 3:
        return None
    if pixels.shape[2] == 3:
        return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
    rgba = cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGBA)
    if "RGBa" in kind:  # a TIFF's colours may be multiplied by alpha, which OpenCV passes on
        alpha = rgba[..., 3:].astype(np.uint32)
        rgba[..., :3] = np.minimum((rgba[..., :3] * np.uint32(65535) + alpha // 2) // np.maximum(alpha, 1), 65535)
    return rgba[..., [0, 3]] if "LA" in kind else rgba  # OpenCV repeats grey over the channels


def _pillow_pixels(picture: Image.Image) -> Pixels:
    """A loaded picture of any mode -> (H, W) or (H, W, 2 to 4), uint8 or uint16."""
    if picture.mode.startswith("I"):  # 16-bit grey, which some versions of Pillow widen to 32
        values = np.asarray(picture)
        if values.min() >= 0 and values.max() <= np.iinfo(np.uint16).max:
            grey16 = values.astype(np.uint16)
            clear = picture.info.get("transparency")  # the one value that is
            return grey16 if clear is None else np.dstack([grey16, np.where(grey16 == clear, 0, 65535).astype("u2")])
    if picture.mode in ("I", "F"):
        raise UserError("it has 32 bits per sample: save it with 8 or 16")
    grey = picture.mode in ("1", "L", "LA", "La")
    mode = ("L" if grey else "RGB") + ("A" if picture.has_transparency_data else "")
    return np.asarray(picture if picture.mode == mode else picture.convert(mode))


def _on_white(pixels: Pixels) -> Pixels:
    """(H, W, C + 1), the last channel alpha -> (H, W, C) composited on white, rounded."""
    white = np.iinfo(pixels.dtype).max
    alpha = pixels[..., -1:].astype(np.uint32)
    mixed = (pixels[..., :-1] * alpha + white * (white - alpha) + white // 2) // white
    return mixed.astype(pixels.dtype)


def _turned(pixels: Pixels, orientation: int) -> Pixels:
    """(H, W, C) the right way up. EXIF orientations 5 to 8 have rows and columns exchanged."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels
