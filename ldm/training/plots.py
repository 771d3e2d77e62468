"""The loss curves of a run."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from basicsr.utils.files import write_whole


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
    png = io.BytesIO()
    figure.savefig(png, dpi=110, format="png")
    write_whole(path, png.getvalue())
    return True


def _smooth(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Running mean over `window` points, over fewer at the ends."""
    kernel = np.ones(window)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")
