"""Pictures of a page: zoomed crops with their edge maps, and whole frames for the slider."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from torch import Tensor

from basicsr.metrics.edge_metrics import edge_map
from basicsr.utils.errors import UserError
from ldm.evaluation.comparison import Comparison
from ldm.evaluation.pictures import Picture, read_frames, read_tensor
from ldm.evaluation.summary import Report

CROP = 96  # pixels
SLIDER_SIDE = 720  # pixels at most
# Edges of a result: met, invented, missing.
MET, INVENTED, MISSING = (0.82, 0.84, 0.87), (0.89, 0.55, 0.20), (0.30, 0.62, 0.86)


@dataclass(frozen=True)
class Column:
    """One version of a picture."""

    label: str
    img_01: Tensor  # RGB (3, H, W) in [0, 1]


def columns(report: Report, comparison: Comparison, name: str) -> list[Column]:
    """A picture's versions: degraded, restored by each run, true.

    Raises:
        UserError: a file is no longer where it was.
    """
    files = report.pictures[name]
    frames = read_frames(Picture(name, Path(files["gt"]), Path(files["lq"]), "", ""), report.settings.sf)
    restored = [
        Column(run.label, read_tensor(report.folder / result.restored[name]))
        for run, result in zip(comparison.runs, comparison.chosen, strict=True) if name in result.restored
    ]  # fmt: skip
    return [Column("degraded", frames.lq_01), *restored, Column("true", frames.gt_01)]


def available(report: Report, comparison: Comparison, names: Sequence[str]) -> dict[str, list[Column]]:
    """The versions of those pictures whose files are all there."""
    found = {}
    for name in names:
        try:
            found[name] = columns(report, comparison, name)
        except UserError:
            continue
    return found


def zoom_window(versions: Sequence[Column]) -> tuple[slice, slice]:
    """Rows and columns of the square of `CROP` pixels where the restored versions differ most, in brightness.

    From each other where there are several, else from the true one.
    """
    greys = [column.img_01.mean(0).numpy() for column in versions]
    restored = greys[1:-1]
    spread = np.ptp(restored, axis=0) if len(restored) > 1 else np.abs(restored[0] - greys[-1])
    height, width = spread.shape
    side_y, side_x = min(CROP, height), min(CROP, width)
    sums = cv2.boxFilter(spread.astype(np.float64) ** 2, -1, (side_x, side_y), anchor=(0, 0), normalize=False)
    top, left = np.unravel_index(np.argmax(sums[: height - side_y + 1, : width - side_x + 1]), (
        height - side_y + 1, width - side_x + 1))  # fmt: skip
    return slice(int(top), int(top) + side_y), slice(int(left), int(left) + side_x)


def edge_picture(version: Column, true: Column, window: tuple[slice, slice]) -> np.ndarray:
    """The edges of a version inside a window, coloured by whether the true picture has them: (h, w, 3) in [0, 1]."""
    own, wanted = edge_map(version.img_01), edge_map(true.img_01)
    near = [cv2.dilate(edges.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0 for edges in (wanted, own)]
    canvas = np.full((*own.shape, 3), 0.11)
    for mask, colour in ((wanted & ~near[1], MISSING), (own & near[0], MET), (own & ~near[0], INVENTED)):
        canvas[mask] = colour
    return canvas[window]


def overview(true: Column, window: tuple[slice, slice], side: int = 220) -> np.ndarray:
    """The whole true picture, small, with the window's outline: (h, w, 3) in [0, 1]."""
    pixels = _rows(true.img_01)
    scale = side / max(pixels.shape[:2])
    size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
    small = np.ascontiguousarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA))
    corners = [(round(columns * scale), round(rows * scale)) for rows, columns in
               ((window[0].start, window[1].start), (window[0].stop - 1, window[1].stop - 1))]  # fmt: skip
    cv2.rectangle(small, corners[0], corners[1], (0.0, 0.0, 0.0), 3)
    cv2.rectangle(small, corners[0], corners[1], (1.0, 1.0, 1.0), 1)
    return small


def crop_uri(version: Column, window: tuple[slice, slice]) -> str:
    """The window of a version as a PNG."""
    return data_uri(_rows(version.img_01)[window], "PNG")


def frame_uri(version: Column) -> str:
    """A whole version as a JPEG, made smaller where it is larger than `SLIDER_SIDE`."""
    pixels = _rows(version.img_01)
    scale = min(1.0, SLIDER_SIDE / max(pixels.shape[:2]))
    if scale < 1:
        size = (round(pixels.shape[1] * scale), round(pixels.shape[0] * scale))
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return data_uri(pixels, "JPEG")


def data_uri(pixels_01: np.ndarray, kind: str) -> str:
    """(h, w, 3) in [0, 1] as a picture that stands in the page itself."""
    buffer = io.BytesIO()
    picture = Image.fromarray((np.clip(pixels_01, 0, 1) * 255).round().astype(np.uint8))
    picture.save(buffer, format=kind, **({"quality": 88} if kind == "JPEG" else {"optimize": True}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _rows(img_01: Tensor) -> np.ndarray:
    return img_01.permute(1, 2, 0).numpy()
