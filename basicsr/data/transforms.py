"""Crops and flips. Each takes its randomness as a generator."""

from collections.abc import Sequence

import numpy as np

# Sides of the windows that `random_window` draws from, in pixels.
WINDOW_SIDES = (64, 128, 256, 512)


def reflect_pad(img: np.ndarray, size: int) -> np.ndarray:
    """(H, W, C) -> at least (size, size, C), mirrored at the bottom and right without repeating the border pixel.

    Pictures that are much smaller are mirrored again and again; a single row or column is repeated.
    """
    height, width = img.shape[:2]
    return np.pad(img, ((0, max(0, size - height)), (0, max(0, size - width)), (0, 0)), mode="reflect")


def random_crop(img: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """A random (size, size, C) window of `img` (H, W, C), which is mirrored first where it is smaller."""
    top = int(rng.integers(max(0, img.shape[0] - size) + 1))
    left = int(rng.integers(max(0, img.shape[1] - size) + 1))
    return reflect_pad(img[top : top + size, left : left + size], size)


def random_flips(img: np.ndarray, rng: np.random.Generator, hflip: bool, rotate: bool) -> np.ndarray:  # noqa: FBT001
    """A view of `img` (H, W, C), each change with probability one half.

    Args:
        hflip: mirror left to right.
        rotate: mirror top to bottom, and exchange rows and columns; with `hflip`, all eight ways to lay a square.
    """
    mirror_x, mirror_y, transpose = rng.random(3) < 0.5
    if hflip and mirror_x:
        img = img[:, ::-1]
    if rotate and mirror_y:
        img = img[::-1]
    if rotate and transpose:
        img = img.transpose(1, 0, 2)
    return img


def random_window(size: Sequence[int], rng: np.random.Generator) -> tuple[slice, slice]:
    """The rows and columns of a random window of pictures (H, W): StableSR's `random_size`.

    Height and width are drawn on their own from those `WINDOW_SIDES` that fit; a side below the smallest is kept whole.
    """
    rows, columns = (_random_span(extent, rng) for extent in size)
    return rows, columns


def _random_span(extent: int, rng: np.random.Generator) -> slice:
    side = int(rng.choice([s for s in WINDOW_SIDES if s <= extent] or [extent]))
    start = int(rng.integers(extent - side + 1))
    return slice(start, start + side)
