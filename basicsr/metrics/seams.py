"""How visible the borders of tiles are."""

from collections.abc import Sequence

import numpy as np


def seam_score(tiled: np.ndarray, whole: np.ndarray, rows: Sequence[int], columns: Sequence[int]) -> float:
    """How much steeper the difference of two pictures is across the tiles' borders than elsewhere.

    1 means that the borders are like any other place, below 1 that they are smoother; 0 / 0 counts as 1.

    Args:
        tiled, whole: the same picture made in tiles and at once, (H, W) or (H, W, C), in any one range.
        rows, columns: where a border lies: between pixel row - 1 and row, column - 1 and column; others are left out.

    Raises:
        ValueError: the shapes differ, or there is no border inside the picture.
    """
    if tiled.shape != whole.shape:
        raise ValueError(f"pictures of {tiled.shape} and {whole.shape}")
    difference = tiled.astype(np.float64) - whole
    across, elsewhere = [], []
    for axis, borders in enumerate((rows, columns)):
        steepness = np.abs(np.diff(difference, axis=axis)).mean(axis=tuple({0, 1, 2} - {axis})[: difference.ndim - 1])
        at_border = np.isin(np.arange(1, difference.shape[axis]), borders)
        across += steepness[at_border].tolist()
        elsewhere += steepness[~at_border].tolist()
    if not across or not elsewhere:
        raise ValueError("no border inside the picture, or nothing else")
    return 1.0 if np.mean(elsewhere) == 0 == np.mean(across) else float(np.mean(across) / np.mean(elsewhere))
