"""What a measurement consists of: rows of a table, and the cases of a row, each measured by a process of its own."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

SIDES = ("baseline", "ours")  # the published way comes first, to be compared with


@dataclass(frozen=True)
class Case:
    """What one process measures: a row of the table, of one side in one precision."""

    row: str
    side: str  # of `SIDES`
    precision: str  # fp32 or bf16
    size: str  # full, small or tiny
    pixels: int  # side of a training picture, or of a result
    batch: int
    device: str
    seconds: float  # of timed calls; at least one is made
    work: str  # folder of weights and results
    operators: bool = False  # whether to tell in which operators the time goes

    @property
    def key(self) -> str:
        """The name of what is measured, whoever measures it for how long."""
        return f"{self.row} {self.side} {self.precision} {self.size} {self.pixels} {self.batch}"


@dataclass(frozen=True)
class Ready:
    """What is measured: call(0) warms up and gives the result that both sides must agree on."""

    call: Callable[[int], Any]
    count: int = 1  # the seconds of a call are divided by it
    peak: Callable[[], int] | None = None  # bytes, where another process does the work


@dataclass(frozen=True)
class Row:
    """A row of the table: `prepare` makes what a process measures, `unit` is what its seconds are of."""

    prepare: Callable[[Case], Ready]
    unit: str
    sides: tuple[str, ...] = SIDES
    precisions: tuple[str, ...] = ("fp32", "bf16")  # of ours
    fixed: tuple[int, int] | None = None  # batch and pixels, whatever is asked for, at every size but tiny
    mean: bool = False  # results are compared by their mean difference: single values may be rounded the other way
