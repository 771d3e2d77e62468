"""Means and differences with their intervals: by bootstrap over pictures, by Student's t over seeds."""

import math
import statistics
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

RESAMPLES = 2000
CONFIDENCE = 95  # percent


class Interval(NamedTuple):
    """A mean over pictures (or, of `student_mean`, other units) with its interval; all NaN where there is no value."""

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
    better: bool | None  # whether the second is; None where the interval holds 0

    @property
    def verdict(self) -> str:
        """Better, worse, not clear; equal on every picture; or nothing in common."""
        if not self.difference.pictures:
            return "nothing in common"
        if self.ties == self.difference.pictures:
            return "equal"
        return {True: "better", False: "worse", None: "not clear"}[self.better]

    @property
    def score(self) -> str:
        """`won 2 of 5, 1 equal`; `equal` where no picture tells the runs apart."""
        if self.ties == self.difference.pictures:
            return self.verdict
        return f"won {self.wins} of {self.difference.pictures}" + (f", {self.ties} equal" if self.ties else "")


def bootstrap_mean(values: Sequence[float]) -> Interval:
    """The mean and its percentile interval (Efron & Tibshirani 1993, chapter 13), over resampled pictures.

    NaN values are left out. The resampling is seeded: equal values give equal intervals. With one value there is
    nothing to resample and the interval is that value; with few, intervals are too narrow.
    """
    return _bootstrapped(tuple(value for value in values if not math.isnan(value)))


def compare(first: Mapping[str, float], second: Mapping[str, float], *, higher_is_better: bool) -> Paired:
    """Compare a metric of two runs, given as picture -> value, on the pictures where both have one."""
    pictures = [name for name in first if name in second and not math.isnan(first[name] + second[name])]
    differences = [second[name] - first[name] for name in pictures]
    gains = [difference if higher_is_better else -difference for difference in differences]
    wins, losses = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
    change = bootstrap_mean(differences)
    certain = change.pictures > 1 and not change.low <= 0 <= change.high
    better = (change.mean > 0) == higher_is_better if certain else None
    return Paired(change, wins, losses, len(gains) - wins - losses, better)


def student_half_width(values: Sequence[float]) -> float:
    """Half the width of the `CONFIDENCE` % interval of a mean of independent values, by Student's t.

    Raises:
        statistics.StatisticsError: fewer than two values, which say nothing of their spread.
    """
    from scipy.stats import t  # here, for it takes a second to load and reports need none of it

    quantile = float(t.ppf(0.5 + CONFIDENCE / 200, len(values) - 1))
    return quantile * statistics.stdev(values) / math.sqrt(len(values))


def student_mean(values: Sequence[float]) -> Interval:
    """The mean of independent values with its interval by Student's t; of one value there is no interval."""
    if not values:
        return Interval(math.nan, math.nan, math.nan, 0)
    mean = statistics.fmean(values)
    half = student_half_width(values) if len(values) > 1 else 0.0
    return Interval(mean, mean - half, mean + half, len(values))


@lru_cache(maxsize=10_000)  # a page asks for the same means again and again
def _bootstrapped(known: tuple[float, ...]) -> Interval:
    if not known:
        return Interval(math.nan, math.nan, math.nan, 0)
    values = np.array(known)
    draws = np.random.default_rng(values.size).integers(values.size, size=(RESAMPLES, values.size))
    tail = (100 - CONFIDENCE) / 2
    low, high = np.percentile(values[draws].mean(axis=1), [tail, 100 - tail])
    return Interval(float(values.mean()), float(low), float(high), values.size)
