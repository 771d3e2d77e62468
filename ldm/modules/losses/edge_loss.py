"""The edge loss: pixel error, weighted where the true picture has edges."""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from basicsr.utils.edge_utils import EdgeMapGenerator
from ldm.modules.losses.edge_adversarial import AdversarialError
from ldm.modules.losses.edge_errors import ERRORS
from ldm.modules.losses.edge_operators import dilated, edges_01
from ldm.modules.losses.edge_options import EdgeOptions


class EdgeTerms(NamedTuple):
    """`loss` carries the gradient; two are for the eye alone: Canny has no gradient, and `by_sample` (B,) is detached.

    `discriminator` is what the error's discriminator is to lower, where it has one.
    """

    loss: Tensor
    edge_map_mse: Tensor
    by_sample: Tensor
    discriminator: Tensor | None


class EdgeLoss:
    """By default loss = mean((pred - gt)^2 * (E + 0.1)),  E = Canny(gt) in {0, 1}, one channel for all three

    edge_map_mse = mean((Canny(pred) - E)^2)

    The base weight, 0.1, keeps flat regions from drifting: with E alone nothing would hold them. `EdgeOptions` has the
    formulas of everything else that E, the weight and the error can be.
    """

    def __init__(self, generator: EdgeMapGenerator | None = None, options: EdgeOptions | None = None) -> None:
        self.generator = generator or EdgeMapGenerator()
        self.options = options or EdgeOptions()
        self.error = ERRORS[self.options.loss_type]()

    @property
    def discriminator(self) -> nn.Module | None:
        """The network that is to be trained beside, where the error has one."""
        return self.error.discriminator if isinstance(self.error, AdversarialError) else None

    def __call__(self, pred_pm1: Tensor, gt_pm1: Tensor, importance: Tensor | None = None) -> EdgeTerms:
        """Both pictures (B, 3, H, W), nominally in [-1, 1], not clamped; the loss's gradient flows to `pred_pm1` alone.

        importance (B,) multiplies each sample's loss. Computed in float32, whatever precision the decoder ran in. The
        discriminator's loss is left out where there is no gradient.
        """
        with torch.autocast(pred_pm1.device.type, enabled=False):  # filters are convolutions
            return self._terms(pred_pm1.float(), gt_pm1.detach().float(), importance)

    def _terms(self, pred_pm1: Tensor, gt_pm1: Tensor, importance: Tensor | None) -> EdgeTerms:
        with torch.no_grad():
            edges = self.edges(gt_pm1)
            edge_map_mse = (self.edges(pred_pm1) - edges).square().mean()
        weights = self.weight_map(edges)
        if importance is not None:
            weights = weights * importance.reshape(-1, 1, 1, 1)
        weighted = self.error(pred_pm1, gt_pm1) * weights
        discriminator = None
        if isinstance(self.error, AdversarialError) and torch.is_grad_enabled():
            discriminator = (self.error.discriminator_error(pred_pm1, gt_pm1) * weights).mean()
        return EdgeTerms(weighted.mean(), edge_map_mse, weighted.detach().mean(dim=(1, 2, 3)), discriminator)

    def as_a_measure(self) -> "EdgeLoss":
        """Itself, or with the squared error where a discriminator, which learns, measures otherwise at every step."""
        if self.discriminator is None:
            return self
        return EdgeLoss(self.generator, replace(self.options, loss_type="weighted_mse"))

    def edges(self, images_pm1: Tensor) -> Tensor:
        """The operator's edges E of (B, 3, H, W): (B, 1, H, W) in [0, 1]."""
        return edges_01(self.options.operator, images_pm1, self.generator)

    def weight_map(self, edges: Tensor) -> Tensor:
        """W of the true picture's edges, (B, 1, H, W)."""
        weights = dilated(edges, self.options.dilate) + self.options.base_weight
        if self.options.normalize == "mean1":
            # A picture without edges and without a base weight has no weight at all: it stays so.
            weights = weights / weights.mean(dim=(2, 3), keepdim=True).clamp(min=1e-12)
        return weights

    @torch.no_grad()
    def pictures(self, pred_pm1: Tensor, gt_pm1: Tensor) -> tuple[Tensor, Tensor]:
        """To look at, (B, 3, H, W) in [-1, 1] each: the weight map in red over the true picture, and error times W.

        Of W is shown what lies above its minimum, as a share of the highest, picture by picture: nothing where all
        weighs alike. The error is shown as the square root of its share of the maximum.
        """
        pred_pm1, gt_pm1 = pred_pm1.float(), gt_pm1.float()
        weights = self.weight_map(self.edges(gt_pm1))
        red = torch.tensor([1.0, -1.0, -1.0], device=gt_pm1.device)[:, None, None]
        above = _share(weights - weights.amin(dim=(2, 3), keepdim=True))
        over_truth = torch.lerp(gt_pm1, red.expand_as(gt_pm1), above.expand_as(gt_pm1))
        error = (self.error(pred_pm1, gt_pm1) * weights).mean(dim=1, keepdim=True)
        return over_truth, (_share(error).sqrt() * 2 - 1).expand_as(gt_pm1)


def _share(maps: Tensor) -> Tensor:
    """Each of (B, 1, H, W), 0 or more, as a share of its maximum."""
    return maps / maps.amax(dim=(2, 3), keepdim=True).clamp(min=1e-12)
