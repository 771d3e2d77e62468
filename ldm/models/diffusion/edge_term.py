"""The edge loss within a training step: which samples and windows are decoded, and how strongly it counts."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from basicsr.utils.errors import FieldError
from ldm.models.diffusion.process import Noised, Process
from ldm.models.diffusion.training_loss import LossReport
from ldm.modules.losses.edge_balance import GradientBalance, Measured, output_gradients, with_gradient
from ldm.modules.losses.edge_loss import EdgeLoss
from ldm.modules.losses.edge_weight import EdgeWeight
from ldm.modules.losses.edge_windows import Windows, draw_by_edges, draw_uniform

Parts = dict[str, Tensor]

# What a step may leave out: there may be no active sample, or none in a quarter of the process.
NOT_AT_EVERY_STEP = (
    "loss_edge", "loss_edge_t0", "loss_edge_t1", "loss_edge_t2", "loss_edge_t3",
    "edge_map_mse", "edge_share", "edge_grad_ratio",
)  # fmt: skip


class EdgeTerm:
    """total = main + w loss_edge; the formulas are in `EdgeOptions`.

    Where loss_edge has a discriminator, what is minimised has that one's loss in it besides, which moves nothing else;
    the total that is logged has not.

    Args:
        weight: w before warm-up, or the fraction of the main loss's gradient that it is to bring about.
        loss: the criterion, with the options.
        decode: scaled latents (B, 4, h, w) -> pictures (B, 3, f h, f w) in [-1, 1].
        timesteps: the length of the original process.
    """

    def __init__(
        self, weight: EdgeWeight, loss: EdgeLoss, decode: Callable[[Tensor], Tensor], *, timesteps: int
    ) -> None:
        self.loss = loss
        self.decode = decode
        self.timesteps = timesteps
        self.balance = GradientBalance(weight.value) if weight.relative else None
        self.measured: Measured | None = None  # the last ratio of gradients
        self._asked_at: int | None = None  # the step that a ratio was last due at
        self._fixed = weight.value

    @property
    def weight(self) -> float:
        """The present w before warm-up: the number given, or what the gradients so far called for (1 before any)."""
        return self._fixed if self.balance is None else self.balance.weight

    def __call__(
        self,
        report: LossReport,
        process: Process,
        n: Noised,
        output: Tensor,
        *,
        gt_pm1: Tensor | None = None,
        step: int = 0,
        rng: torch.Generator | None = None,
    ) -> LossReport:
        """The main loss's report with the edge loss in it. Without active samples nothing is decoded.

        gt_pm1: the true pictures (B, 3, f h, f w), where an option asks for them. step: optimiser steps done. rng draws
        the windows.
        """
        options, main = self.loss.options, report.total
        active = options.passes(n.t_original, process.snr(n.t))
        if options.gated and not active.any():
            # An empty sum: whatever the output is, also where it is not finite, this is 0 and so is its gradient.
            loss, parts = output[:0].float().sum(), Parts()
        elif options.gated:
            chosen_gt_pm1 = None if gt_pm1 is None else gt_pm1[active]
            loss, parts = self._loss(process, n.chosen(active), output[active], gt_pm1=chosen_gt_pm1, rng=rng)
        else:
            loss, parts = self._loss(process, n, output, gt_pm1=gt_pm1, rng=rng)
        warmup = options.warmup(step)
        ratio: float | None = None
        if output.requires_grad and self.balance is not None:
            total, weight, ratio = self._balanced(self.balance, main, loss, output, warmup)
        else:
            weight = self.weight * warmup
            if main.requires_grad and self._due(step):
                # Only looked at: the backward pass walks the decoder itself, so that the step is the same to the bit.
                ratio = _ratio(weight, *output_gradients(main, loss, output, keep=True).norms())
            total = main + weight * loss
        if ratio is not None:
            self.measured = Measured(step, ratio, weight)
            parts["edge_grad_ratio"] = main.new_tensor(ratio)
        parts |= {"edge_weight": main.new_tensor(weight), "edge_active": active.float().mean()}
        if "loss_edge" in parts:
            parts["edge_share"] = weight * loss / total
        parts = report.parts | parts | {"loss": total}
        if "loss_discriminator" in parts:
            total = total + parts["loss_discriminator"]
        return LossReport(total, {name: value.detach() for name, value in parts.items()})

    def _due(self, step: int) -> bool:
        """Whether a step is to be looked at: once, although several batches share it when gradients accumulate."""
        if step == self._asked_at or not self.loss.options.measures(step):
            return False
        self._asked_at = step
        return True

    def _balanced(
        self, balance: GradientBalance, main: Tensor, loss: Tensor, output: Tensor, warmup: float
    ) -> tuple[Tensor, float, float | None]:
        """The total, the weight, and the ratio of the gradients at the U-Net's output where both are above 0."""
        gradients = output_gradients(main, loss, output)
        main_norm, edge_norm = gradients.norms()
        balance.update(main_norm, edge_norm)
        weight = self.weight * warmup
        # The decoder has been walked backward already: the backward pass starts at the U-Net's output.
        total = with_gradient(main + weight * loss, output, gradients.main + weight * gradients.edge)
        return total, weight, _ratio(weight, main_norm, edge_norm)

    def _loss(
        self, process: Process, n: Noised, output: Tensor, *, gt_pm1: Tensor | None, rng: torch.Generator | None
    ) -> tuple[Tensor, Parts]:
        """loss_edge over samples that are all active, and its parts."""
        z_pred, z_gt = process.x0(output, n), n.z_gt
        windows = self._windows(z_pred, gt_pm1, rng)
        if windows is not None:
            z_pred, z_gt = windows.cut(z_pred), windows.cut(z_gt)
        pred_pm1, truth_pm1 = self._pictures(z_pred, z_gt, gt_pm1, windows)
        terms = self.loss(pred_pm1, truth_pm1, None if windows is None else windows.importance)
        parts = {"loss_edge": terms.loss, "edge_map_mse": terms.edge_map_mse}
        if terms.discriminator is not None:
            parts["loss_discriminator"] = terms.discriminator
        quarters = n.t_original * 4 // self.timesteps
        for quarter in sorted(set(quarters.tolist())):
            parts[f"loss_edge_t{quarter}"] = terms.by_sample[quarters == quarter].mean()
        return terms.loss, parts

    def _windows(self, z_pred: Tensor, gt_pm1: Tensor | None, rng: torch.Generator | None) -> Windows | None:
        options = self.loss.options
        if options.crop is None:
            return None
        if options.crop_by == "uniform":
            return draw_uniform(z_pred, options.crop, rng)
        edges = self.loss.edges(_given("edge_crop_by", options.crop_by, gt_pm1))
        return draw_by_edges(z_pred, edges, options.crop, rng)

    def _pictures(
        self, z_pred: Tensor, z_gt: Tensor, gt_pm1: Tensor | None, windows: Windows | None
    ) -> tuple[Tensor, Tensor]:
        """Predicted pictures (B, 3, H, W) and those to compare them with, of the windows where there are any."""
        if self.loss.options.target == "decoded":
            with torch.no_grad():
                truth_pm1 = self.decode(z_gt)
            return self.decode(z_pred), truth_pm1
        truth_pm1 = _given("edge_target", "pixels", gt_pm1)
        pred_pm1 = self.decode(z_pred)
        if windows is not None:
            truth_pm1 = windows.cut(truth_pm1, pred_pm1.shape[-1] // windows.side)
        if pred_pm1.shape != truth_pm1.shape:
            raise FieldError(
                "edge_target",
                f"is 'pixels' and the true pictures are {_size(truth_pm1)} where decoded ones are {_size(pred_pm1)}: "
                "use frames that are multiples of the autoencoder's f",
            )
        return pred_pm1, truth_pm1


def _ratio(weight: float, main_norm: float, edge_norm: float) -> float | None:
    """None where there is nothing to compare, or a gradient overflowed: that says nothing of the weight."""
    ratio = weight * edge_norm / main_norm if main_norm > 0 and edge_norm > 0 else math.nan
    return ratio if math.isfinite(ratio) and ratio > 0 else None


def _given(field: str, value: str, gt_pm1: Tensor | None) -> Tensor:
    if gt_pm1 is None:
        raise FieldError(field, f"is {value!r}, which needs the true pictures: hand them to p_losses as gt_pm1")
    return gt_pm1


def _size(images: Tensor) -> str:
    return f"{images.shape[-2]} x {images.shape[-1]}"
