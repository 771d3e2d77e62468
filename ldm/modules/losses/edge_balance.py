"""Gradients at the U-Net's output: how strongly the edge loss pulls there beside the main loss."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

LOWEST, HIGHEST = 1e-4, 1e4  # the weight's bounds
MEMORY = 100  # steps that the average looks back


class OutputGradients(NamedTuple):
    """Gradients of the main and of the edge loss at the U-Net's output, float32, of its shape."""

    main: Tensor
    edge: Tensor

    def norms(self) -> tuple[float, float]:
        """Their norms over the batches of all processes together, which must all ask at the same step."""
        squares = torch.stack([self.main.square().sum(), self.edge.square().sum()])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(squares)
        main, edge = squares.sqrt().tolist()
        return main, edge


def output_gradients(main: Tensor, edge: Tensor, output: Tensor, *, keep: bool = False) -> OutputGradients:
    """The gradients of two losses at `output`; they go no further.

    What lies above `output` is let go, unless `keep`: a backward pass can then walk it again, as if none had before.

    The losses are scaled up on the way, for a mean's gradient over so many elements would vanish in half precision.
    """
    scale = float(output.numel())
    grads = [torch.autograd.grad(loss * scale, output, retain_graph=keep)[0].float() / scale for loss in (main, edge)]
    if keep and output.retains_grad:
        output.grad = None  # the walks above have filled it; the backward pass is to find it as it was
    return OutputGradients(*grads)


def with_gradient(value: Tensor, output: Tensor, gradient: Tensor) -> Tensor:
    """A loss of that value whose gradient at `output` is `gradient`: a backward pass from it starts there."""
    surrogate = (output.float() * gradient).sum()
    return value.detach() + (surrogate - surrogate.detach())


@dataclass(frozen=True)
class Measured:
    """What was measured at a step, counted from 0: |w G_edge| / |G_main|, and the w of that step."""

    step: int
    ratio: float
    weight: float


class GradientBalance:
    """w = exp(EMA(log(fraction * |G_main| / |G_edge|))), so that w |G_edge| is `fraction` of |G_main|

    The logarithm makes a step that is ten times too strong and one that is ten times too weak cancel out. The first
    `MEMORY` measurements count alike; the weight stays between `LOWEST` and `HIGHEST`. It is the same on all processes.
    """

    def __init__(self, fraction: float) -> None:
        self.fraction = fraction
        self._log_weight = 0.0
        self._updates = 0

    @property
    def weight(self) -> float:
        """The present weight; 1 before the first measurement."""
        return math.exp(self._log_weight)

    def update(self, main_norm: float, edge_norm: float) -> None:
        """Take up one step's norms; a step without an edge loss, or that overflowed, says nothing."""
        if not (math.isfinite(main_norm) and math.isfinite(edge_norm) and main_norm > 0 and edge_norm > 0):
            return
        wanted = min(max(self.fraction * main_norm / edge_norm, LOWEST), HIGHEST)
        self._updates += 1
        self._log_weight += (math.log(wanted) - self._log_weight) / min(self._updates, MEMORY)

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {"log_weight": self._log_weight, "updates": self._updates}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on from there."""
        self._log_weight, self._updates = float(state["log_weight"]), int(state["updates"])
