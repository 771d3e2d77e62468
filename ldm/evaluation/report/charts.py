"""Where things stand in a chart: lines with bands, dots with bars, and intervals about zero. Templates draw them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ldm.evaluation.report.statistics import Interval

COLOURS = ("#2f6690", "#d17a22", "#4f8a5b", "#8d5a97", "#b8504b", "#6b7280", "#2a9d8f", "#a68a3c")
WIDTH, HEIGHT = 340, 210
LEFT, RIGHT, TOP, BOTTOM = 54, 14, 14, 34  # pixels around the plot
BAR_WIDTH, BAR_HEIGHT = 220, 20


@dataclass(frozen=True)
class Series:
    """One run's values over x; one value without x is a line across the chart."""

    label: str
    colour: str
    points: tuple[tuple[float | None, Interval], ...]


@dataclass(frozen=True)
class Line:
    """A series in pixels: corners as "x,y", and dots with their words."""

    colour: str
    upper: list[str]
    middle: list[str]
    lower: list[str]
    dots: list[tuple[float, float, str]]


@dataclass(frozen=True)
class LevelLine:
    """A value across the whole chart."""

    colour: str
    y: float
    words: str


@dataclass(frozen=True)
class Plot:
    """What a chart is drawn from, in pixels."""

    x_label: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    lines: list[Line]
    levels: list[LevelLine]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    bottom: int = HEIGHT - BOTTOM


@dataclass(frozen=True)
class Bar:
    """A small interval about a line at zero, in pixels; `kind` chooses the colour."""

    low: float
    mean: float
    high: float
    kind: str
    width: int = BAR_WIDTH
    height: int = BAR_HEIGHT


def colour(index: int) -> str:
    """A run's colour, the same in every chart."""
    return COLOURS[index % len(COLOURS)]


def curves(series: Sequence[Series], x_label: str, decimals: int) -> Plot:
    """Means over x with their intervals: bands about lines, and a bar through the dot where a series has one point."""
    known = [(x, each) for one in series for x, each in one.points if each.pictures]
    places = sorted({x for x, _ in known if x is not None})
    x_values, x_of = _axis(places, LEFT, WIDTH - RIGHT)
    ends = [end for x, each in known for end in ((each.mean,) if x is None else (each.low, each.high))]
    y_values, y_of = _axis(ends, HEIGHT - BOTTOM, TOP)
    digits = _decimals(y_values, decimals)
    lines, levels = [], []
    for one in series:
        points = [(x, each) for x, each in one.points if x is not None and each.pictures]
        if points:
            lines.append(_line(one, points, x_label, decimals, (x_of, y_of)))
        for each in (each for x, each in one.points if x is None and each.pictures):
            levels.append(LevelLine(one.colour, y_of(each.mean), f"{one.label}: {in_words(each, decimals)}"))
    return Plot(
        x_label,
        [(x_of(tick), f"{tick:g}") for tick in (places if len(places) <= 6 else x_values)],
        [(y_of(tick), f"{tick:.{digits}f}") for tick in y_values],
        lines,
        levels,
    )


def interval_bar(interval: Interval, reach: float, *, better: bool | None) -> Bar:
    """An interval about zero; `reach` is the value at both ends."""
    middle = BAR_WIDTH / 2

    def place(value: float) -> float:
        return round(middle + (middle - 8) * max(-1.0, min(1.0, value / reach)) if reach else middle, 1)

    kind = {True: "better", False: "worse", None: "unclear"}[better]
    return Bar(place(interval.low), place(interval.mean), place(interval.high), kind)


def in_words(interval: Interval, decimals: int, sign: str = "") -> str:
    """`31.20 (30.81 to 31.62)`; the mean alone where there is one picture, a dash where there is none."""
    if not interval.pictures:
        return "–"
    widest = max(map(abs, interval[:3]))
    if sign and 0 < widest < 10**-decimals:  # a difference that would be shown as nothing but zeros
        decimals = 1 - math.floor(math.log10(widest))
    mean, low, high = (f"{value:{sign}.{decimals}f}".replace("-", "−") for value in interval[:3])
    return mean if interval.pictures == 1 else f"{mean} ({low} to {high})"


Scale = Callable[[float], float]  # from a value to its pixel


def _line(
    one: Series, points: Sequence[tuple[float, Interval]], x_label: str, decimals: int, scales: tuple[Scale, Scale]
) -> Line:
    x_of, y_of = scales

    def corners(values: Sequence[float]) -> list[str]:
        return [f"{x_of(x)},{y_of(value)}" for (x, _), value in zip(points, values, strict=True)]

    means = [each.mean for _, each in points]
    return Line(
        one.colour,
        corners([each.high for _, each in points]),
        corners(means),
        corners([each.low for _, each in points]),
        [(x_of(x), y_of(e.mean), f"{one.label}, {x_label} {x:g}: {in_words(e, decimals)}") for x, e in points],
    )


def _axis(values: Sequence[float], start: float, end: float) -> tuple[list[float], Scale]:
    """Round ticks over the values, and the function from a value to its pixel between `start` and `end`."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if high - low < 1e-9:
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    margin = 0.06 * (high - low)
    low, high = low - margin, high + margin
    step = 10 ** math.floor(math.log10((high - low) / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= 5)
    first = math.ceil(low / step - 1e-9)
    ticks = [round(step * index, 10) for index in range(first, math.floor(high / step + 1e-9) + 1)]
    return ticks, lambda value: round(start + (end - start) * (value - low) / (high - low), 1)


def _decimals(ticks: Sequence[float], most: int) -> int:
    """As many as it takes to tell the ticks apart."""
    return next((digits for digits in range(most) if all(abs(t - round(t, digits)) < 1e-9 for t in ticks)), most)
