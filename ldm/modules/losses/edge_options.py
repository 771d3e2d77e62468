"""What can be chosen about the edge loss: one place for every option's meaning, formula and limits."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from basicsr.utils import checks
from basicsr.utils.errors import UserError

OPERATORS = ("canny", "sobel", "laplacian")
LOSS_TYPES = ("weighted_mse", "charbonnier", "gradient")
CROP_BY = ("uniform", "edges")
TARGETS = ("decoded", "pixels")
NORMALIZE = ("none", "mean1")


class AutoWeight(str):
    """`auto:FRACTION` in place of a weight, as in `edge_loss_weight: auto:0.2`; `fraction` is its number.

    Raises UserError for any other text, and for a fraction that is not above 0 and at most 10.
    """

    IN_WORDS = "auto:FRACTION (such as auto:0.2)"
    fraction: float

    def __new__(cls, text: str) -> "AutoWeight":
        name = "model.params.edge_loss_weight"
        kind, _, digits = text.partition(":")
        try:
            fraction = float(digits)
        except ValueError:
            fraction = math.nan
        if kind != "auto" or not math.isfinite(fraction):
            raise UserError(f"{name} is {text!r}: give a number, 0 or more, or {cls.IN_WORDS}")
        weight = super().__new__(cls, text)
        weight.fraction = checks.number(f"{name}: the fraction", fraction, 1e-6, 10)
        return weight


@dataclass(frozen=True)
class EdgeOptions:
    """The options `edge_…` of `model.params`, under their names there without that prefix.

    With p the predicted and g the true picture of a sample, E in [0, 1] the edges of g and W the weight map,

        loss = main + w loss_edge,  loss_edge = mean over active samples of i mean(error(p, g) W),  W = E + base_weight

    loss_weight: w, a number or `auto:f`. That gives w = exp(EMA(log(f |G_main| / |G_edge|))), where the G are the
        gradients of main and loss_edge at the U-Net's output (`GradientBalance`).
    warmup_steps: N makes that w min(1, (step + 1) / N); 0 is w at once.
    max_timestep: a sample is active where its original timestep t <= max_timestep.
    min_snr: and where abar_t / (1 - abar_t) >= min_snr.
    crop: p and g are decoded in a window of crop x crop latent cells per sample; null takes the frame.
    crop_by: `uniform` draws every window alike, i = 1; `edges` with q = (1 - FLOOR) d / sum(d) + FLOOR / windows, d the
        window's share of edge pixels in the true picture; then i = 1 / (windows q) keeps the expectation.
    target: g is the `decoded` true latent, or the true picture itself (`pixels`), which spares a decode.
    operator: E, see `ldm.modules.losses.edge_operators`: canny (0 or 1), or soft sobel or laplacian.
    dilate: r pixels make E its maximum over (2 r + 1) x (2 r + 1) pixels.
    base_weight: what a flat region weighs beside an edge's 1: with 0 nothing would hold it.
    normalize: `mean1` divides W by its mean over the picture (with `crop`, the window).
    loss_type: error(p, g), with d = p - g: weighted_mse d^2; charbonnier sqrt(d^2 + 0.001^2); gradient
        (Sobel_x d)^2 + (Sobel_y d)^2.
    grad_ratio_every: log w |G_edge| / |G_main| at every that many steps; 0 never. `auto` logs it anyway.

    Raises UserError for a value out of range, and for options that exclude each other.
    """

    loss_weight: float | str = 0.0
    warmup_steps: int = 0
    max_timestep: int | None = None
    min_snr: float | None = None
    crop: int | None = None
    crop_by: str = "uniform"
    target: str = "decoded"
    operator: str = "canny"
    dilate: int = 0
    base_weight: float = 0.1
    normalize: str = "none"
    loss_type: str = "weighted_mse"
    grad_ratio_every: int = 0

    def __post_init__(self) -> None:
        at = "model.params.edge_"
        if not isinstance(self.loss_weight, str):
            checks.number(f"{at}loss_weight", self.loss_weight, 0)
        for name, valid in (
            ("crop_by", CROP_BY),
            ("target", TARGETS),
            ("operator", OPERATORS),
            ("normalize", NORMALIZE),
            ("loss_type", LOSS_TYPES),
        ):
            if getattr(self, name) not in valid:
                raise checks.unknown(f"{at}{name}:", str(getattr(self, name)), valid)
        checks.number(f"{at}base_weight", self.base_weight, 0)
        for name in ("warmup_steps", "dilate", "grad_ratio_every", "max_timestep", "crop"):
            if getattr(self, name) is not None:
                checks.whole_number(at + name, getattr(self, name), 1 if name == "crop" else 0)
        if self.min_snr is not None:
            checks.number(f"{at}min_snr", self.min_snr, 0)
        if self.crop_by == "edges" and self.crop is None:
            raise UserError(f"{at}crop_by is 'edges' and there is no window: set {at}crop, such as 16")
        if isinstance(self.loss_weight, str):
            AutoWeight(self.loss_weight)  # refuses what it is not

    @property
    def fraction(self) -> float | None:
        """The f of `auto:f`; None where the weight is a number."""
        return AutoWeight(self.loss_weight).fraction if isinstance(self.loss_weight, str) else None

    @property
    def fixed_weight(self) -> float:
        """w where it is a number; 1, to be multiplied by what the gradients call for, where it is `auto`."""
        return 1.0 if isinstance(self.loss_weight, str) else float(self.loss_weight)

    @property
    def weight_in_words(self) -> str:
        """For a log line."""
        return self.loss_weight if isinstance(self.loss_weight, str) else f"{self.loss_weight:g}"

    def warmup(self, step: int) -> float:
        """The factor of w at a step, counted from 0."""
        return min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0

    @property
    def gated(self) -> bool:
        """Whether some samples may have no edge loss."""
        return self.max_timestep is not None or self.min_snr is not None

    def passes(self, t_original: Tensor, abar: Tensor) -> Tensor:
        """Which samples are active, boolean (B,), of timesteps of the original process and alphas_cumprod there."""
        active = torch.ones_like(t_original, dtype=torch.bool)
        if self.max_timestep is not None:
            active &= t_original <= self.max_timestep
        if self.min_snr is not None:
            active &= abar / (1 - abar) >= self.min_snr
        return active

    def check_process(self, t_original: Tensor, abar: Tensor) -> None:
        """Raise UserError where not one step of a process, given as to `passes`, would have an edge loss."""
        if self.gated and not self.passes(t_original, abar).any():
            best = float((abar / (1 - abar)).max())
            raise UserError(
                f"model.params.edge_max_timestep {self.max_timestep} and edge_min_snr {self.min_snr} leave "
                f"no step with an edge loss; the least noisy has SNR {best:.4g}"
            )
