"""Numbers for the log that some steps have and others have not."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class LastValue(Metric):
    """A step's number, where it has one.

    Lightning repeats a plain number in every later row of the epoch; of a metric that was reset it logs nothing.
    """

    full_state_update = True
    value: Tensor

    def __init__(self) -> None:
        super().__init__(sync_on_compute=False)
        self.add_state("value", default=torch.tensor(float("nan")), dist_reduce_fx=None)

    def of_step(self, value: Tensor | None) -> "LastValue":
        """The metric itself, to be logged, with the step's number or without one."""
        if value is None:
            self.reset()
        else:
            self(value)  # not update: Lightning logs what the last call computed
        return self

    def update(self, value: Tensor) -> None:
        """Take up a step's number."""
        self.value = value

    def compute(self) -> Any:
        """That number."""
        return self.value
