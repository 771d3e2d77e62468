"""Guidance by a reference picture: the clean latents that a sampler predicts are drawn towards the reference's."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from basicsr.utils import checks

if TYPE_CHECKING:
    from torch import Tensor

# Predicted clean latents x_0 (B, 4, h, w), original timesteps (B,) -> corrected ones
Correction = Callable[["Tensor", "Tensor"], "Tensor"]


@dataclass(frozen=True)
class ReferencePull:
    """How strongly a reference draws, and when (StableSR's face script).

    rate: of each gradient step; 0.5 is all the way. steps: so many for each step of the sampler. between: the first and
    the last timestep, both of the whole process (0 to 999) and both included. StableSR counts the sampler's own steps
    here, of which few are in range where there are few.

    Raises:
        FieldError: a value that cannot be, by the name `reference_rate`, `reference_steps` or `reference_range`.
    """

    rate: float = 0.05
    steps: int = 1
    between: tuple[int, int] = (100, 1000)

    def __post_init__(self) -> None:
        checks.number("reference_rate", self.rate, 0, 1)  # beyond 1 the steps overshoot further and further
        checks.whole_number("reference_steps", self.steps, 1)
        checks.interval("reference_range", self.between, 0)


def pulled(x0: "Tensor", z_ref: "Tensor", *, rate: float, steps: int) -> "Tensor":
    """`steps` gradient steps of x0 on |z_ref - x0|^2, summed over each picture, each times `rate`.

    The gradient is 2 (x0 - z_ref): a step leaves 1 - 2 rate of the difference, and all of them
    z_ref + (1 - 2 rate)^steps (x0 - z_ref). Latents are scaled, (B, 4, h, w). StableSR divides the sum by the batch
    size, which is 1 in its script: here company in a batch changes nothing.
    """
    return z_ref + (1 - 2 * rate) ** steps * (x0 - z_ref)


def towards(z_ref: "Tensor", pull: ReferencePull) -> Correction:
    """The correction for pictures whose references have the scaled latents z_ref (B, 4, h, w)."""
    first, last = pull.between

    def correct(x0: "Tensor", t: "Tensor") -> "Tensor":
        within = ((t >= first) & (t <= last))[:, None, None, None]
        return pulled(x0, z_ref, rate=pull.rate, steps=pull.steps).where(within, x0)

    return correct
