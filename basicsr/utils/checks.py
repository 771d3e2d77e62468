"""Checks of options that come from users: each returns the clean value or raises FieldError."""

import math
from collections.abc import Iterable, Sequence

from basicsr.utils.errors import FieldError, closest


def number(name: str, value: object, low: float = -math.inf, high: float = math.inf) -> float:
    """One finite number in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise FieldError(name, f"is {value!r}: give a number")
    if not low <= value <= high:
        limits = f"of {low:g} or more" if high == math.inf else f"from {low:g} to {high:g}"
        raise FieldError(name, f"is {value}: give a number {limits}")
    return float(value)


def whole_number(name: str, value: object, low: float, high: float = math.inf) -> int:
    """One integer in [low, high]."""
    given = number(name, value, low, high)
    if not given.is_integer():
        raise FieldError(name, f"is {value}: give a whole number")
    return value if isinstance(value, int) else int(given)


def probability(name: str, value: object) -> float:
    """One number in [0, 1]."""
    return number(name, value, 0, 1)


def switch(name: str, value: object) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise FieldError(name, f"is {value!r}: give true or false")
    return value


def interval(name: str, value: object, low: float = -math.inf, high: float = math.inf) -> tuple[float, float]:
    """Two numbers in [low, high], the first not above the second."""
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != 2:
        raise FieldError(name, f"is {value!r}: give two numbers, [lowest, highest]")
    first, last = (number(name, end, low, high) for end in value)
    if first > last:
        raise FieldError(name, f"is [{first:g}, {last:g}]: the first number must not be above the second")
    return first, last


def weights(name: str, value: object, names: Sequence[str]) -> tuple[float, ...]:
    """Probabilities for drawing one of `names`, scaled to a sum of 1."""
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != len(names):
        raise FieldError(name, f"is {value!r}: give {len(names)} probabilities, for {', '.join(names)}")
    given = [number(name, each, 0) for each in value]
    if sum(given) == 0:
        raise FieldError(name, f"is {given}: at least one probability must be above 0")
    return tuple(each / sum(given) for each in given)


def unknown(field: str, value: str, valid: Iterable[str]) -> FieldError:
    """The error for a value that is none of `valid`, with the closest one that is."""
    valid = list(valid)
    near = closest(value, valid)
    advice = f"did you mean {near!r}?" if near else f"use one of {', '.join(valid)}"
    return FieldError(field, f"{value!r} is not known: {advice}")
