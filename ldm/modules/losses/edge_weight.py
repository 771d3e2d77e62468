"""How strongly the edge loss counts: a number, or a fraction to be reached. Loads without torch, for reports."""

import math
from dataclasses import dataclass
from typing import Annotated

from basicsr.utils import checks
from basicsr.utils.errors import FieldError

MIN_FRACTION, MAX_FRACTION = 1e-6, 10


@dataclass(frozen=True)
class EdgeWeight:
    """How strongly the edge loss counts: w itself, or the `fraction` of the main loss's gradient that w brings about.

    Written as a number, or as `auto:FRACTION`; numbers come before fractions in order.
    """

    value: float
    relative: bool = False

    @classmethod
    def parse(cls, given: object) -> "EdgeWeight":
        """From a number of 0 or more, or from `auto:f` with an f above 0 and at most 10.

        Raises:
            FieldError: anything else.
        """
        field = "edge_loss_weight"
        if isinstance(given, EdgeWeight):
            return given
        if not isinstance(given, str):
            return cls(checks.number(field, given, 0))
        kind, _, digits = given.partition(":")
        try:
            fraction = float(digits)
        except ValueError:
            fraction = math.nan
        if kind != "auto" or not math.isfinite(fraction):
            raise FieldError(field, f"is {given!r}: give a number, 0 or more, or auto:FRACTION (such as auto:0.2)")
        if not MIN_FRACTION <= fraction <= MAX_FRACTION:
            raise FieldError(
                field, f"is {given!r}: the fraction is {fraction}: give one from {MIN_FRACTION:g} to {MAX_FRACTION:g}"
            )
        return cls(fraction, relative=True)

    def __str__(self) -> str:
        return f"auto:{self.value:g}" if self.relative else f"{self.value:g}"

    def __lt__(self, other: "EdgeWeight") -> bool:
        return (self.relative, self.value) < (other.relative, other.value)


# What a constructor or a YAML may give for one.
EdgeWeightLike = Annotated[float | str | EdgeWeight, EdgeWeight.parse]
