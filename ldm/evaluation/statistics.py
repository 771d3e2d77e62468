"""Means over pictures, and differences between runs on the same pictures, with bootstrap intervals."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from basicsr.utils.rng import numpy_rng

RESAMPLES = 2000
CONFIDENCE = 95  # percent


class Interval(NamedTuple):
    """A mean over pictures with its bootstrap interval; all NaN where there is no value."""

    mean: float
    low: float
    high: float
    pictures: int


class Paired(NamedTuple):
    """What changes from one run to another on the same pictures."""

    difference: Interval  # of the second minus the first
    wins: int  # pictures on which the second is better
    losses: int
    ties: int

    @property
    def certain(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.difference.pictures > 1 and not self.difference.low <= 0 <= self.difference.high


def bootstrap_mean(values: Sequence[float]) -> Interval:
    """The mean and its percentile interval (Efron & Tibshirani 1993, chapter 13), over resampled pictures.

    NaN values are left out. The resampling is seeded: equal values give equal intervals. With one value there is
    nothing to resample and the interval is that value; with few, intervals are too narrow.
    """
    known = np.array([value for value in values if not math.isnan(value)])
    if known.size == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    draws = numpy_rng("bootstrap", known.size).integers(known.size, size=(RESAMPLES, known.size))
    tail = (100 - CONFIDENCE) / 2
    low, high = np.percentile(known[draws].mean(axis=1), [tail, 100 - tail])
    return Interval(float(known.mean()), float(low), float(high), int(known.size))


def compare(first: Mapping[str, float], second: Mapping[str, float], higher_is_better: bool) -> Paired:
    """Compare a metric of two runs, given as picture -> value, on the pictures where both have one."""
    pictures = [name for name in first if name in second and not math.isnan(first[name] + second[name])]
    differences = [second[name] - first[name] for name in pictures]
    better = [difference if higher_is_better else -difference for difference in differences]
    wins, losses = sum(value > 0 for value in better), sum(value < 0 for value in better)
    return Paired(bootstrap_mean(differences), wins, losses, len(better) - wins - losses)
