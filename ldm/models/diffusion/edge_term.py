"""The edge loss within one training step: which samples and windows are decoded, and how strongly it counts."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from basicsr.utils.errors import UserError
from ldm.models.diffusion import objective
from ldm.models.diffusion.schedule import Schedule
from ldm.modules.losses.edge_balance import GradientBalance, output_gradients, with_gradient
from ldm.modules.losses.edge_loss import EdgeLoss
from ldm.modules.losses.edge_windows import Windows, draw_by_edges, draw_uniform

Parts = dict[str, Tensor]


@dataclass(frozen=True)
class EdgeTerm:
    """What the edge loss needs at one step besides latents; the formulas are in `EdgeOptions`."""

    weight: float  # before warm-up; with a balance, a factor of its weight
    loss: EdgeLoss
    decode: Callable[[Tensor], Tensor]  # scaled latents (B, 4, h, w) -> pictures in [-1, 1]
    t_original: Tensor  # (B,) timesteps of the original process
    timesteps: int  # its length
    step: int = 0  # optimiser steps done
    balance: GradientBalance | None = None
    gt_pm1: Tensor | None = None  # the true pictures (B, 3, f h, f w), where an option asks for them
    rng: torch.Generator | None = None  # draws the windows

    def added_to(
        self, main: Tensor, kind: str, schedule: Schedule, output: Tensor, x_start: Tensor, x_t: Tensor, t: Tensor
    ) -> tuple[Tensor, Parts]:
        """The main loss plus w loss_edge, and what there is to log. Without active samples nothing is decoded."""
        options = self.loss.options
        active = options.passes(self.t_original, schedule.alphas_cumprod[t])
        loss, parts = self._loss(kind, schedule, output, x_start, x_t, t, active)
        warmup = options.warmup(self.step)
        weight = self.weight * warmup
        due = options.grad_ratio_every and self.step % options.grad_ratio_every == 0
        if not (output.requires_grad and (self.balance is not None or due)):
            total = main + weight * loss
        else:
            gradients = output_gradients(main, loss, output)
            norms = gradients.norms()
            if self.balance is not None:
                self.balance.update(*norms)
                weight = self.weight * self.balance.weight * warmup
            # The decoder has been walked backward already: the backward pass starts at the U-Net's output.
            total = with_gradient(main + weight * loss, output, gradients.main + weight * gradients.edge)
            if all(norm > 0 for norm in norms):
                parts["edge_grad_ratio"] = output.new_tensor(weight * norms[1] / norms[0], dtype=torch.float32)
        parts["edge_weight"] = main.new_tensor(weight)
        parts["edge_active"] = active.float().mean()
        if "loss_edge" in parts:
            parts["edge_share"] = weight * loss / total
        return total, parts

    def _loss(
        self, kind: str, schedule: Schedule, output: Tensor, x_start: Tensor, x_t: Tensor, t: Tensor, active: Tensor
    ) -> tuple[Tensor, Parts]:
        """loss_edge over the active samples, and its parts; 0, connected to the output, and no parts without any."""
        gt_pm1, t_original = self.gt_pm1, self.t_original
        if self.loss.options.gated:
            if not active.any():
                # An empty sum: whatever the output is, also where it is not finite, this is 0 and so is its gradient.
                return output[:0].float().sum(), {}
            output, x_start, x_t, t, t_original = (each[active] for each in (output, x_start, x_t, t, t_original))
            gt_pm1 = None if gt_pm1 is None else gt_pm1[active]
        z_pred = objective.x0_from_output(kind, schedule, output, x_t, t)
        pred_pm1, gt_pm1, importance = self._pictures(z_pred, x_start, gt_pm1)
        loss, edge_map_mse, by_sample = self.loss(pred_pm1, gt_pm1, importance)
        parts = {"loss_edge": loss, "edge_map_mse": edge_map_mse}
        quarters = t_original * 4 // self.timesteps
        for quarter in sorted(set(quarters.tolist())):
            parts[f"loss_edge_t{quarter}"] = by_sample[quarters == quarter].mean()
        return loss, parts

    def _pictures(self, z_pred: Tensor, x_start: Tensor, gt_pm1: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Predicted and true pictures (B, 3, H, W), or their windows, and the windows' importance weights."""
        options = self.loss.options
        windows: Windows | None = None
        if options.crop is not None and options.crop_by == "uniform":
            windows = draw_uniform(z_pred, options.crop, self.rng)
        elif options.crop is not None:
            windows = draw_by_edges(z_pred, self.loss.edges(_given("crop_by: edges", gt_pm1)), options.crop, self.rng)
        if windows is not None:
            z_pred, x_start = windows.cut(z_pred), windows.cut(x_start)
        if options.target == "decoded":
            with torch.no_grad():
                truth_pm1 = self.decode(x_start)
        else:
            truth_pm1 = _given("target: pixels", gt_pm1)
        pred_pm1 = self.decode(z_pred)
        if options.target == "pixels" and windows is not None:
            truth_pm1 = windows.cut(truth_pm1, pred_pm1.shape[-1] // windows.side)
        if pred_pm1.shape != truth_pm1.shape:
            raise UserError(
                f"model.params.edge_target is 'pixels' and the true pictures are {_size(truth_pm1)} where "
                f"decoded ones are {_size(pred_pm1)}: use frames that are multiples of the autoencoder's f"
            )
        return pred_pm1, truth_pm1, None if windows is None else windows.importance


def _given(option: str, gt_pm1: Tensor | None) -> Tensor:
    if gt_pm1 is None:
        raise UserError(f"model.params.edge_{option} needs the true pictures: hand them to p_losses as gt_pm1")
    return gt_pm1


def _size(images: Tensor) -> str:
    return f"{images.shape[-2]} x {images.shape[-1]}"
