"""Pictures of a run: labelled grids of samples, and the loss curves."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

LABELS = {
    "lq": "LQ (input)",
    "gt": "GT",
    "x0_pred": "predicted x0",
    "sample": "sample",
    "edge_gt": "edges of GT",
    "edge_pred": "edges of x0",
    "edge_weight": "weight over GT",
    "edge_error": "weighted error",
}
MIN_TILE = 160  # pixels: small frames are enlarged so that the labels stay readable
GAP = 4
LABEL_HEIGHT = 22


def labelled_grid(columns: Mapping[str, Tensor]) -> Image.Image:
    """One picture: a column per entry with its label on top, a row per sample.

    Args:
        columns: each (N, 3, H, W) in -1 to 1, all of one size; values beyond are clamped.
    """
    first = next(iter(columns.values()))
    zoom = max(1, -(-MIN_TILE // first.shape[-1]))
    height, width = first.shape[-2] * zoom, first.shape[-1] * zoom
    rows = min(len(batch) for batch in columns.values())
    size = (len(columns) * (width + GAP) + GAP, rows * (height + GAP) + LABEL_HEIGHT + GAP)
    grid = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(grid)
    font = ImageFont.load_default(14)
    for column, (name, batch) in enumerate(columns.items()):
        left = GAP + column * (width + GAP)
        draw.text((left + width // 2, LABEL_HEIGHT // 2), LABELS.get(name, name), fill="black", anchor="mm", font=font)
        for row in range(rows):
            tile = Image.fromarray(to_uint8(batch[row])).resize((width, height), Image.Resampling.NEAREST)
            grid.paste(tile, (left, LABEL_HEIGHT + row * (height + GAP)))
    return grid


def png_bytes(image: Image.Image) -> bytes:
    """The picture as a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def to_uint8(img_pm1: Tensor) -> np.ndarray:
    """(3, H, W) in -1 to 1 -> (H, W, 3) of 0 to 255."""
    img = (img_pm1.detach().float().cpu().clamp(-1, 1) + 1) * 127.5
    return img.round().byte().permute(1, 2, 0).numpy()


def save_loss_curves(rows: Sequence[Mapping[str, Any]], path: Path) -> bool:
    """Draw the losses over the steps, each raw (pale) and smoothed, one above the other.

    Returns:
        Whether there was anything to draw; without two points of any loss no file is written.
    """
    from matplotlib.figure import Figure  # not pyplot: no global state and no display

    wanted = {"train/loss": "loss", "train/loss_edge": "edge loss", "val/loss": "validation loss"}
    curves = {}
    for key, label in wanted.items():
        points = [(row["step"], row[key]) for row in rows if key in row]
        if len(points) > 1:
            curves[label] = np.array(points).T
    if not curves:
        return False
    figure = Figure(figsize=(9, 2.8 * len(curves)), layout="constrained")
    panels = figure.subplots(len(curves), 1, sharex=True, squeeze=False)[:, 0]
    for panel, (label, (steps, values)) in zip(panels, curves.items(), strict=True):
        window = max(1, len(values) // 20)
        if window > 1:
            panel.plot(steps, values, color="tab:blue", alpha=0.3, linewidth=0.8)
        panel.plot(steps, _smooth(values, window), color="tab:blue", linewidth=1.6)
        panel.set_ylabel(label)
        panel.grid(alpha=0.3)
        if window > 1:
            panel.set_title(f"mean over {window} points around each (pale: each point)", fontsize=8, loc="right")
    panels[-1].set_xlabel("step")
    figure.savefig(path, dpi=110)
    return True


def _smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Running mean over `window` points, over fewer at the ends."""
    kernel = np.ones(window)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")
