"""The curves of a run."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from basicsr.utils.files import write_whole

LOSSES = {
    "loss": {"": "train/loss"},
    "edge loss": {"": "train/loss_edge"},
    "validation loss": {"": "val/loss"},
}
# What the edge monitor logs: "picture" and "edges" are the halves of the time-aware encoder's input.
EDGE_MONITOR = {
    "norm of first weights": {half: f"edge_monitor/weight_{half}" for half in ("picture", "edges")},
    "norm of their gradient": {half: f"edge_monitor/gradient_{half}" for half in ("picture", "edges")},
    "effect of emptied maps\n|change of output|": {"": "edge_monitor/effect"},
    "gain from maps\n(fall in squared error)": {"": "edge_monitor/gain"},
}


def save_loss_curves(rows: Sequence[Mapping[str, Any]], path: Path) -> bool:
    """Draw the losses over the steps, each raw (pale) and smoothed, one above the other.

    Returns:
        Whether there was anything to draw; without two points of any loss no file is written.
    """
    return _save(rows, LOSSES, path)


def save_edge_monitor(rows: Sequence[Mapping[str, Any]], path: Path) -> bool:
    """The same for what the edge monitor logs."""
    return _save(rows, EDGE_MONITOR, path)


def _save(rows: Sequence[Mapping[str, Any]], wanted: Mapping[str, Mapping[str, str]], path: Path) -> bool:
    """`wanted`: by the label of each panel its curves, by theirs the key in the rows."""
    from matplotlib.figure import Figure  # not pyplot: no global state and no display

    drawn: dict[str, dict[str, NDArray[np.float64]]] = {}
    for label, curves in wanted.items():
        for name, key in curves.items():
            points = [(row["step"], row[key]) for row in rows if key in row]
            if len(points) > 1:
                drawn.setdefault(label, {})[name] = np.array(points).T
    if not drawn:
        return False
    figure = Figure(figsize=(9, 2.8 * len(drawn)), layout="constrained")
    panels = figure.subplots(len(drawn), 1, sharex=True, squeeze=False)[:, 0]
    for panel, (label, shown) in zip(panels, drawn.items(), strict=True):
        for (name, (steps, values)), colour in zip(shown.items(), ("tab:blue", "tab:orange"), strict=False):
            window = max(1, len(values) // 20)
            if window > 1:
                panel.plot(steps, values, color=colour, alpha=0.3, linewidth=0.8)
                panel.set_title(f"mean over {window} points around each (pale: each point)", fontsize=8, loc="right")
            panel.plot(steps, _smooth(values, window), color=colour, linewidth=1.6, label=name)
        panel.set_ylabel(label)
        panel.grid(alpha=0.3)
        if any(shown):
            panel.legend()
    panels[-1].set_xlabel("step")
    png = io.BytesIO()
    figure.savefig(png, dpi=110, format="png")
    write_whole(path, png.getvalue())
    return True


def _smooth(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Running mean over `window` points, over fewer at the ends."""
    kernel = np.ones(window)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")
