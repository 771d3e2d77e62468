"""Charts as inline SVG: lines with bands, dots with bars, and intervals about zero."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from ldm.evaluation.statistics import Interval

COLOURS = ("#2f6690", "#d17a22", "#4f8a5b", "#8d5a97", "#b8504b", "#6b7280", "#2a9d8f", "#a68a3c")
WIDTH, HEIGHT = 340, 210
LEFT, RIGHT, TOP, BOTTOM = 54, 14, 14, 34  # pixels around the plot


@dataclass(frozen=True)
class Series:
    """One run's values over x."""

    label: str
    colour: str
    points: tuple[tuple[float, Interval], ...]


def colour(index: int) -> str:
    """A run's colour, the same in every chart."""
    return COLOURS[index % len(COLOURS)]


def curves(series: Sequence[Series], x_label: str, decimals: int) -> str:
    """Means over x with their intervals: bands about lines, and a bar through the dot where a series has one point."""
    known = [(x, each) for one in series for x, each in one.points if each.pictures]
    places = sorted({x for x, _ in known})
    x_ticks, x_of = _axis(places, LEFT, WIDTH - RIGHT)
    y_ticks, y_of = _axis([end for _, each in known for end in (each.low, each.high)], HEIGHT - BOTTOM, TOP)
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" class="chart">']
    for tick in y_ticks:
        y, text = y_of(tick), f"{tick:.{_decimals(y_ticks, decimals)}f}"
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{y + 3.5:.1f}" text-anchor="end">{text}</text>')
    for tick in places if len(places) <= 6 else x_ticks:
        parts.append(f'<text x="{x_of(tick):.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{tick:g}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x_label)}</text>')
    for one in series:
        points = [(x_of(x), x, each) for x, each in one.points if each.pictures]
        upper, mean, lower = (
            [f"{px:.1f},{y_of(value):.1f}" for px, _, each in points for value in [getattr(each, name)]]
            for name in ("high", "mean", "low")
        )
        style = f'stroke="{one.colour}" stroke-width="2"'
        if len(points) == 1:
            parts.append(f'<polyline points="{upper[0]} {lower[0]}" {style} opacity="0.45"/>')
        else:
            parts.append(f'<polygon points="{" ".join(upper + lower[::-1])}" fill="{one.colour}" opacity="0.13"/>')
            parts.append(f'<polyline points="{" ".join(mean)}" fill="none" {style}/>')
        for px, x, each in points:
            words = f"{escape(one.label)}, {escape(x_label)} {x:g}: {in_words(each, decimals)}"
            dot = f'<circle cx="{px:.1f}" cy="{y_of(each.mean):.1f}" r="3" fill="{one.colour}">'
            parts.append(f"{dot}<title>{words}</title></circle>")
    return "".join(parts) + "</svg>"


def interval_bar(interval: Interval, reach: float, better: bool | None) -> str:
    """A small interval about a line at zero; `reach` is the value at both ends; `better` chooses the colour."""
    width, height, middle = 220, 20, 110
    kind = {True: "better", False: "worse", None: "unclear"}[better]

    def place(value: float) -> float:
        return middle + (middle - 8) * max(-1.0, min(1.0, value / reach)) if reach else middle

    low, high, mean = (place(value) for value in (interval.low, interval.high, interval.mean))
    return (
        f'<svg viewBox="0 0 {width} {height}" class="interval {kind}"><line class="zero" x1="{middle}" x2="{middle}" '
        f'y1="0" y2="{height}"/><line class="bar" x1="{low:.1f}" x2="{high:.1f}" y1="{height / 2}" y2="{height / 2}"/>'
        f'<circle cx="{mean:.1f}" cy="{height / 2}" r="4"/></svg>'
    )


def weight_in_words(weight: float | str) -> str:
    """`0.1`, or `auto:0.2` as it is."""
    return weight if isinstance(weight, str) else f"{weight:g}"


def in_words(interval: Interval, decimals: int, sign: str = "") -> str:
    """`31.20 (30.81 to 31.62)`; the mean alone where there is one picture, a dash where there is none."""
    if not interval.pictures:
        return "–"
    widest = max(map(abs, interval[:3]))
    if sign and 0 < widest < 10**-decimals:  # a difference that would be shown as nothing but zeros
        decimals = 1 - math.floor(math.log10(widest))
    mean, low, high = (f"{value:{sign}.{decimals}f}".replace("-", "−") for value in interval[:3])
    return mean if interval.pictures == 1 else f"{mean} ({low} to {high})"


def _axis(values: Sequence[float], start: float, end: float) -> tuple[list[float], Callable[[float], float]]:
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
    return ticks, lambda value: start + (end - start) * (value - low) / (high - low)


def _decimals(ticks: Sequence[float], most: int) -> int:
    """As many as it takes to tell the ticks apart."""
    return next((digits for digits in range(most) if all(abs(t - round(t, digits)) < 1e-9 for t in ticks)), most)
