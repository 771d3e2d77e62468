"""Pictures on disk: finding them, and reading every common kind as RGB."""

import logging
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from basicsr.utils.errors import UserError

log = logging.getLogger(__name__)

PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
_EXIF_ORIENTATION = 0x0112


def find_pictures(
    folder: str | os.PathLike[str], suffixes: Collection[str] = PICTURE_SUFFIXES, name: str = "folder"
) -> list[Path]:
    """All pictures below `folder`, in sorted order; hidden files and folders are left out, links are followed.

    Args:
        folder: where to look, recursively.
        suffixes: lower-case file suffixes with their dot; files match in any case.
        name: what the user calls `folder` (an option or a YAML key), for the error.

    Raises:
        UserError: `folder` is not there, or is not a folder. Finding nothing is not an error here.
    """
    if not os.path.isdir(folder):
        problem = "is a file, not a folder" if os.path.exists(folder) else "does not exist"
        if not os.path.isabs(folder):
            problem += f" (looked for in {os.getcwd()})"
        raise UserError(f"{name}: {folder} {problem}; give the folder that holds the pictures")
    found: list[Path] = []
    visited: set[str] = set()
    for parent, folders, files in os.walk(
        folder, followlinks=True, onerror=lambda error: log.warning("%s: a folder is left out: %s", name, error)
    ):
        real = os.path.realpath(parent)
        if real in visited:  # a link that leads back to a folder already listed
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        found += [
            Path(parent, file)
            for file in files
            if not file.startswith(".") and os.path.splitext(file)[1].lower() in suffixes
        ]
    return sorted(found, key=Path.as_posix)


@dataclass(frozen=True)
class StoredPicture:
    """A picture as it is stored, the right way up, and what belongs to it."""

    pixels: np.ndarray  # (H, W, 1 to 4): grey, grey and alpha, RGB, or RGB and alpha; uint8 or uint16
    exif: bytes = b""  # without the orientation, for the picture has been turned
    icc_profile: bytes = b""  # only where it fits the channels


def read_picture(path: str | os.PathLike[str]) -> StoredPicture:
    """The picture at `path` in the depth and with the channels that it is stored with.

    Palettes are looked up, CMYK is converted, EXIF orientation is applied. Of an animation or a file with several pages
    the first is read.

    Raises:
        UserError: the file is missing, is no picture, is cut short, or holds 32-bit samples, whose range is unknown.
    """
    try:
        return _read_picture(path)
    except MemoryError:
        raise
    except Exception as error:  # decoders fail on damaged files in every possible way
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = "its content is of no known type"
        elif isinstance(error, OSError) and error.strerror:
            reason = error.strerror
        raise UserError(f"{path}: cannot be read as a picture ({reason}); replace or remove it") from error


def read_rgb(path: str | os.PathLike[str]) -> np.ndarray:
    """`read_picture` as RGB alone, (H, W, 3): grey is repeated over the channels.

    What is transparent is laid on white, as a browser shows it: under full transparency files hold arbitrary colours.
    """
    pixels = read_picture(path).pixels
    if pixels.shape[2] in (2, 4):
        pixels = _on_white(pixels)
    return np.ascontiguousarray(pixels if pixels.shape[2] == 3 else np.repeat(pixels, 3, axis=2))


def as_01(pixels: np.ndarray) -> np.ndarray:
    """uint8 or uint16 pixels -> float32 in [0, 1]."""
    return pixels.astype(np.float32) / np.float32(np.iinfo(pixels.dtype).max)


def read_rgb_01(path: str | os.PathLike[str]) -> np.ndarray:
    """`read_rgb` as float32 (H, W, 3) in [0, 1]."""
    return as_01(read_rgb(path))


def _read_picture(path: str | os.PathLike[str]) -> StoredPicture:
    if not os.path.isfile(path) and os.path.exists(path):
        raise UserError("it is no file")  # to open a pipe would wait for ever
    # Given a file and not its name, Pillow does not map it into memory; where it does, it mixes up the rows of
    # uncompressed TIFFs whose orientation exchanges height and width.
    with open(path, "rb") as file, Image.open(file) as picture:
        # Pillow reads colour with 16 bits per channel as 8 bits; its raw mode tells that there was more.
        deep_colour = picture.mode in ("RGB", "RGBA", "LA") and any(";16" in str(tile[3]) for tile in picture.tile)
        picture.load()  # also where OpenCV decodes below: OpenCV takes a file that is cut short without complaint
        return stored(picture, _read_deep(path) if deep_colour else None)


def stored(picture: Image.Image, pixels: np.ndarray | None = None) -> StoredPicture:
    """A loaded picture of any mode; `pixels` replace those that Pillow has of it.

    Raises:
        UserError: it has 32 bits per sample.
    """
    if pixels is None:
        pixels = _pillow_pixels(picture)
    exif = picture.getexif()
    orientation = exif.pop(_EXIF_ORIENTATION, 1)  # Pillow has already turned a TIFF, and unset this
    icc_profile = b"" if picture.mode in ("CMYK", "LAB", "YCbCr", "HSV") else picture.info.get("icc_profile") or b""
    channels_last = pixels[..., None] if pixels.ndim == 2 else pixels
    # A TIFF's tags say how its own pixels are stored: they fit no other file.
    kept_exif = _exif_bytes(exif) if "exif" in picture.info else b""
    return StoredPicture(np.ascontiguousarray(_turned(channels_last, orientation)), kept_exif, icc_profile)


def _exif_bytes(exif: Image.Exif) -> bytes:
    """The tags as a block of bytes; none where cameras wrote what Pillow cannot write again."""
    try:
        return exif.tobytes() if exif else b""
    except Exception:  # it raises whatever the tags' values make struct and its own code raise
        return b""


def _read_deep(path: str | os.PathLike[str]) -> np.ndarray | None:
    """16-bit colour through OpenCV: uint16 (H, W, 3 or 4); None where it cannot (TIFFs with an orientation)."""
    pixels = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16 or pixels.ndim != 3:
        return None
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB if pixels.shape[2] == 3 else cv2.COLOR_BGRA2RGBA)


def _pillow_pixels(picture: Image.Image) -> np.ndarray:
    """A loaded picture of any mode -> (H, W) or (H, W, 2 to 4), uint8 or uint16."""
    if picture.mode.startswith("I"):  # 16-bit grey, which some versions of Pillow widen to 32
        values = np.asarray(picture)
        if values.min() >= 0 and values.max() <= np.iinfo(np.uint16).max:
            return values.astype(np.uint16)
    if picture.mode in ("I", "F"):
        raise UserError("it has 32 bits per sample: save it with 8 or 16")
    grey = picture.mode in ("1", "L", "LA", "La")
    mode = ("L" if grey else "RGB") + ("A" if picture.has_transparency_data else "")
    return np.asarray(picture if picture.mode == mode else picture.convert(mode))


def _on_white(pixels: np.ndarray) -> np.ndarray:
    """(H, W, C + 1), the last channel alpha -> (H, W, C) composited on white, rounded."""
    white = np.iinfo(pixels.dtype).max
    alpha = pixels[..., -1:].astype(np.uint32)
    mixed = (pixels[..., :-1] * alpha + white * (white - alpha) + white // 2) // white
    return mixed.astype(pixels.dtype)


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """(H, W, C) the right way up. EXIF orientations 5 to 8 have rows and columns exchanged."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels
