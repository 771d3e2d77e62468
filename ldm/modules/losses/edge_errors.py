"""What the edge loss weights: how far a predicted picture is from the true one; a class for each formula.

Each is called with the predicted and the true picture, (B, 3, H, W) in [-1, 1], and returns an error of that shape,
0 or more. In the formulas p and g are the two pictures, and nabla is Sobel's derivative (`image_gradients`).
"""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor
from torch.nn.functional import avg_pool2d

from ldm.modules.losses.edge_adversarial import AdversarialError
from ldm.modules.losses.edge_operators import image_gradients

EPS = 1e-3  # where an error's own gradient would be undefined at 0


class PixelError(Protocol):
    """An error at every pixel and channel."""

    def __call__(self, pred_pm1: Tensor, gt_pm1: Tensor) -> Tensor: ...


class SquaredError:
    """(p - g)^2, whose minimiser is the mean of all pictures that are possible."""

    def __call__(self, pred_pm1: Tensor, gt_pm1: Tensor) -> Tensor:
        return (pred_pm1 - gt_pm1).square()


class Charbonnier:
    """sqrt((p - g)^2 + 0.001^2), nearly |p - g|, whose minimiser is the median.

    Charbonnier et al. 1994, equation 21, in the scale of Lai et al. 2017 (LapSRN, section 3.3).
    """

    def __call__(self, pred_pm1: Tensor, gt_pm1: Tensor) -> Tensor:
        return ((pred_pm1 - gt_pm1).square() + EPS**2).sqrt()


class GradientDifference:
    """|nabla (p - g)|^2: edges must have the right strength, sign and place."""

    def __call__(self, pred_pm1: Tensor, gt_pm1: Tensor) -> Tensor:
        along_x, along_y = image_gradients(pred_pm1 - gt_pm1)
        return along_x.square() + along_y.square()


class GradientMagnitude:
    """(|nabla p| - |nabla g|)^2, where |v| = sqrt(v_x^2 + v_y^2 + 0.001^2)

    Steps up and steps down, whose mean is no step at all, agree here: what it asks for is strength. An edge that is out
    of place by a pixel still pays.
    """

    def __call__(self, pred_pm1: Tensor, gt_pm1: Tensor) -> Tensor:
        return (_magnitude(pred_pm1) - _magnitude(gt_pm1)).square()


class GradientEnergy:
    """(M(|nabla p|^2) - M(|nabla g|^2))^2, where M is the mean over windows of 8 x 8 pixels, side by side

    It asks for as much contrast as the true picture has thereabouts, wherever in the window. At the right and lower
    border windows are what is left of them. The weights are, in effect, averaged over windows too.
    """

    side = 8

    def __call__(self, pred_pm1: Tensor, gt_pm1: Tensor) -> Tensor:
        error = (self._energy(pred_pm1) - self._energy(gt_pm1)).square()
        spread = error.repeat_interleave(self.side, dim=-2).repeat_interleave(self.side, dim=-1)
        return spread[..., : pred_pm1.shape[-2], : pred_pm1.shape[-1]]

    def _energy(self, images_pm1: Tensor) -> Tensor:
        along_x, along_y = image_gradients(images_pm1)
        return avg_pool2d(along_x.square() + along_y.square(), self.side, ceil_mode=True)


def _magnitude(images_pm1: Tensor) -> Tensor:
    along_x, along_y = image_gradients(images_pm1)
    return (along_x.square() + along_y.square() + EPS**2).sqrt()


ERRORS: Mapping[str, type[PixelError]] = {
    "weighted_mse": SquaredError,
    "charbonnier": Charbonnier,
    "gradient": GradientDifference,
    "magnitude": GradientMagnitude,
    "energy": GradientEnergy,
    "adversarial": AdversarialError,
}
