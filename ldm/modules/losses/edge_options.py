"""What can be chosen about the edge loss: one place for every option's meaning, formula and limits."""

from dataclasses import dataclass

import torch
from torch import Tensor

from basicsr.utils import checks
from basicsr.utils.errors import FieldError, closest, fields_named
from ldm.modules.losses.edge_errors import ERRORS

OPERATORS = ("canny", "sobel", "laplacian", "uniform")
LOSS_TYPES = tuple(ERRORS)
CROP_BY = ("uniform", "edges")
TARGETS = ("decoded", "pixels")
NORMALIZE = ("none", "mean1")


@dataclass(frozen=True)
class EdgeOptions:
    """The options of a model's `edge:` block; flat, as in published configs, they begin with `edge_`.

    With p the predicted and g the true picture of a sample, E in [0, 1] the edges of g and W the weight map,

        loss = main + w loss_edge,  loss_edge = mean over active samples of i mean(error(p, g) W),  W = E + base_weight

    w is `edge_loss_weight`, a number or `auto:f`. That gives w = exp(EMA(log(f |G_main| / |G_edge|))), where the G are
    the gradients of main and loss_edge at the U-Net's output (`GradientBalance`).

    warmup_steps: N makes that w min(1, (step + 1) / N); 0 is w at once.
    max_timestep: a sample is active where its original timestep t <= max_timestep.
    min_snr: and where abar_t / (1 - abar_t) >= min_snr.
    crop: p and g are decoded in a window of crop x crop latent cells per sample; null takes the frame.
    crop_by: `uniform` draws every window alike, i = 1; `edges` with q = (1 - FLOOR) d / sum(d) + FLOOR / windows, d the
        window's share of edge pixels in the true picture; then i = 1 / (windows q) keeps the expectation.
    target: g is the `decoded` true latent, or the true picture itself (`pixels`), which spares a decode.
    operator: E, see `ldm.modules.losses.edge_operators`: canny (0 or 1), soft sobel or laplacian, or uniform, which is
        1 everywhere: a plain pixel loss, to tell apart what edges do from what any loss on pixels does.
    dilate: r pixels make E its maximum over (2 r + 1) x (2 r + 1) pixels.
    base_weight: what a flat region weighs beside an edge's 1: with 0 nothing would hold it.
    normalize: `mean1` divides W by its mean over the picture (with `crop`, the window).
    loss_type: error(p, g), see `ldm.modules.losses.edge_errors`: weighted_mse, charbonnier, gradient, magnitude,
        energy, or adversarial, whose discriminator learns beside and is part of the model and its checkpoints.
    grad_ratio_every: log w |G_edge| / |G_main| at the first step and at every that many; 0 never. It changes nothing
        else, and costs one more backward pass through the decoder. `auto` logs it at every step anyway.
    decoder_checkpoint: recompute the decoder's activations in the backward pass: slower, much less memory.

    Raises:
        FieldError: a value out of range, or options that exclude each other; the field is the flat name.
    """

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
    grad_ratio_every: int = 100
    decoder_checkpoint: bool = False

    def __post_init__(self) -> None:
        with fields_named(lambda field: f"edge_{field}"):
            self._check()

    def _check(self) -> None:
        for name, valid in (
            ("crop_by", CROP_BY),
            ("target", TARGETS),
            ("operator", OPERATORS),
            ("normalize", NORMALIZE),
            ("loss_type", LOSS_TYPES),
        ):
            value = str(getattr(self, name))
            if value not in valid:
                near = closest(value, valid)
                advice = f"did you mean {near!r}?" if near else f"use one of {', '.join(valid)}"
                raise FieldError(name, f"is {value!r}, which is not known: {advice}")
        checks.number("base_weight", self.base_weight, 0)
        for name in ("warmup_steps", "dilate", "grad_ratio_every", "max_timestep", "crop"):
            if getattr(self, name) is not None:
                checks.whole_number(name, getattr(self, name), 1 if name == "crop" else 0)
        if self.min_snr is not None:
            checks.number("min_snr", self.min_snr, 0)
        if self.crop_by == "edges" and self.crop is None:
            raise FieldError("crop_by", "is 'edges' and there is no window: set edge_crop, such as 16")
        if self.loss_type == "adversarial" and self.gated:
            raise FieldError(
                "loss_type",
                "is 'adversarial', whose discriminator learns at every step: leave out edge_max_timestep, edge_min_snr",
            )

    def warmup(self, step: int) -> float:
        """The factor of w at a step, counted from 0."""
        return min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0

    def measures(self, step: int) -> bool:
        """Whether the ratio of gradients is due at a step, counted from 0: the first, and the last of each round."""
        every = self.grad_ratio_every
        return bool(every) and (step == 0 or (step + 1) % every == 0)

    @property
    def needs_pictures(self) -> bool:
        """Whether the loss looks at the true pictures themselves, not at their latents alone."""
        return self.target == "pixels" or self.crop_by == "edges"

    @property
    def gated(self) -> bool:
        """Whether some samples may have no edge loss."""
        return self.max_timestep is not None or self.min_snr is not None

    def passes(self, t_original: Tensor, snr: Tensor) -> Tensor:
        """Which samples are active, boolean (B,), of original timesteps and the signal-to-noise ratios there."""
        active = torch.ones_like(t_original, dtype=torch.bool)
        if self.max_timestep is not None:
            active &= t_original <= self.max_timestep
        if self.min_snr is not None:
            active &= snr >= self.min_snr
        return active

    def check_process(self, t_original: Tensor, snr: Tensor) -> None:
        """Raise FieldError where not one step of a process, given as to `passes`, would have an edge loss."""
        if self.gated and not self.passes(t_original, snr).any():
            raise FieldError(
                "edge_max_timestep",
                f"{self.max_timestep} and edge_min_snr {self.min_snr} leave no step with an edge loss; "
                f"the least noisy has SNR {float(snr.max()):.4g}",
            )
