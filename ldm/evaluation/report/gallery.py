"""Pictures of a page, read from files: zoomed crops with their edge maps, and whole frames for the slider."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from basicsr.utils.errors import UserError
from basicsr.utils.img_util import as_01, read_rgb
from ldm.evaluation.report.comparison import Comparison
from ldm.evaluation.report.summary import Report

Pixels = np.ndarray[Any, np.dtype[np.uint8]]  # RGB (H, W, 3)
Window = tuple[slice, slice]  # rows, columns
CROP = 96  # pixels
SLIDER_SIDE = 720  # pixels at most
# Edges of a result: met, invented, missing.
MET, INVENTED, MISSING = (209, 214, 222), (227, 140, 51), (77, 158, 219)
DARK = 28


@dataclass(frozen=True)
class Version:
    """One version of a picture; `scores` are its metrics where it is a restored one."""

    label: str
    pixels: Pixels
    scores: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Gallery:
    """The versions of some pictures, and a line for each whose files are no longer all there."""

    versions: dict[str, list[Version]]
    gone: list[str]

    @classmethod
    def of(cls, report: Report, comparison: Comparison, names: Sequence[str]) -> "Gallery":
        """Read them: degraded (where there is one), restored by each run, true; all of one size."""
        found, gone = {}, []
        for name in names:
            try:
                found[name] = _versions(report, comparison, name)
            except UserError as error:
                gone.append(f"{name}: {error}")
        return cls(found, gone)


def read_pixels(path: Path) -> Pixels:
    """A picture file as 8-bit RGB.

    Raises:
        UserError: it is missing or damaged.
    """
    return np.round(as_01(read_rgb(path)) * 255).astype(np.uint8)


def edges(pixels: Pixels) -> np.ndarray:
    """Where the metrics see edges, bool (H, W): `basicsr.metrics.edge_metrics.edge_map`, by OpenCV alone."""
    blurred = cv2.GaussianBlur(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), (5, 5), 1.4)
    return cv2.Canny(blurred, 100, 200) > 0


def zoom_window(versions: Sequence[Version]) -> Window:
    """Rows and columns of the square of `CROP` pixels where the restored versions differ most, in brightness.

    From each other where there are several, else from the true one, which is the last.
    """
    restored = [version for version in versions if version.scores is not None]
    greys = [version.pixels.mean(axis=2) for version in (restored if len(restored) > 1 else [*restored, versions[-1]])]
    spread = np.ptp(greys, axis=0)
    height, width = spread.shape
    side_y, side_x = min(CROP, height), min(CROP, width)
    sums = cv2.boxFilter(spread**2, -1, (side_x, side_y), anchor=(0, 0), normalize=False)
    places = sums[: height - side_y + 1, : width - side_x + 1]
    top, left = np.unravel_index(np.argmax(places), places.shape)
    return slice(int(top), int(top) + side_y), slice(int(left), int(left) + side_x)


def edge_picture(version: Version, true: Version, window: Window) -> Pixels:
    """The edges of a version inside a window, coloured by whether the true picture has them."""
    own, wanted = edges(version.pixels), edges(true.pixels)
    near = [cv2.dilate(each.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0 for each in (wanted, own)]
    canvas = np.full((*own.shape, 3), DARK, np.uint8)
    for mask, colour in ((wanted & ~near[1], MISSING), (own & near[0], MET), (own & ~near[0], INVENTED)):
        canvas[mask] = colour
    return canvas[window]


def overview(true: Version, window: Window, side: int = 220) -> Pixels:
    """The whole true picture, small, with the window's outline."""
    small = np.ascontiguousarray(_scaled(true.pixels, side / max(true.pixels.shape[:2])))
    scale = side / max(true.pixels.shape[:2])
    corners = [
        (round(left * scale), round(top * scale))
        for top, left in ((window[0].start, window[1].start), (window[0].stop - 1, window[1].stop - 1))
    ]
    cv2.rectangle(small, corners[0], corners[1], (0, 0, 0), 3)
    cv2.rectangle(small, corners[0], corners[1], (255, 255, 255), 1)
    return small


def frame_uri(version: Version) -> str:
    """A whole version as a JPEG, made smaller where it is larger than `SLIDER_SIDE`."""
    return data_uri(_scaled(version.pixels, min(1.0, SLIDER_SIDE / max(version.pixels.shape[:2]))), "JPEG")


def data_uri(pixels: Pixels, kind: str) -> str:
    """A picture that stands in the page itself."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=kind, **({"quality": 88} if kind == "JPEG" else {"optimize": True}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _versions(report: Report, comparison: Comparison, name: str) -> list[Version]:
    files = report.pictures[name]
    found = [
        Version(run.label, read_pixels(report.folder / result.restored[name]), result.pictures[name])
        for run, result in comparison.pairs
        if name in result.restored
    ]
    true = Version("true", read_pixels(Path(files["gt"])))
    # Pictures lose what the scale factor does not divide; restored ones from elsewhere may still have it.
    height, width = (min(version.pixels.shape[axis] for version in [*found, true]) for axis in (0, 1))
    versions = [*found, true]
    if "lq" in files:
        degraded = read_pixels(Path(files["lq"]))
        if degraded.shape[0] < height:
            degraded = _resized(degraded, (width, height), cv2.INTER_CUBIC)
        versions.insert(0, Version("degraded", degraded))
    return [replace(version, pixels=version.pixels[:height, :width]) for version in versions]


def _scaled(pixels: Pixels, scale: float) -> Pixels:
    size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
    return pixels if scale == 1 else _resized(pixels, size, cv2.INTER_AREA)


def _resized(pixels: Pixels, size: tuple[int, int], interpolation: int) -> Pixels:
    return np.asarray(cv2.resize(pixels, size, interpolation=interpolation), np.uint8)
