"""Each error of the edge loss against its closed form and against differences, and the weights that know no edges."""

import pytest
import torch
from torch import Tensor

from ldm.modules.losses.edge_errors import ERRORS
from ldm.modules.losses.edge_loss import EdgeLoss
from ldm.modules.losses.edge_options import EdgeOptions

WIDTH = 16
FORMULAS = sorted(set(ERRORS) - {"adversarial"})  # that one has no closed form


def step_at(column: int, height: float = 1.0) -> Tensor:
    """A step up by `height` between `column` - 1 and `column`: (1, 3, 16, 16)."""
    return torch.where(torch.arange(WIDTH) < column, -0.5, -0.5 + height).expand(1, 3, WIDTH, WIDTH).clone()


def loss(pred: Tensor, gt: Tensor, kind: str) -> float:
    """With weight 1 everywhere: what is left is the error's mean."""
    return float(EdgeLoss(options=EdgeOptions(loss_type=kind, operator="uniform", base_weight=0))(pred, gt).loss)


def test_weights_without_edges_make_a_pixel_loss() -> None:
    gt, pred = step_at(8), step_at(8) + 0.2 * torch.linspace(-1, 1, WIDTH)
    plain = float((pred - gt).square().mean())
    assert loss(pred, gt, "weighted_mse") == pytest.approx(plain, rel=1e-6)
    whole = EdgeLoss(options=EdgeOptions(operator="uniform"))
    assert float(whole(pred, gt).loss) == pytest.approx(1.1 * plain, rel=1e-6)


def test_a_step_that_is_too_weak_pays_for_its_strength() -> None:
    # Sobel sees a step by h as h in the two columns beside it.
    weak = loss(step_at(8, 0.4), step_at(8, 1.0), "magnitude")
    assert weak == pytest.approx(2 / WIDTH * 0.6**2, rel=1e-4)
    # Of 8 columns of a window one lies beside the step: its mean of squares is h^2 / 8, on both sides.
    energy = loss(step_at(8, 0.4), step_at(8, 1.0), "energy")
    assert energy == pytest.approx((1 / 8 - 0.4**2 / 8) ** 2, rel=1e-4)


def test_a_step_of_the_other_sign_has_the_same_strength() -> None:
    up = step_at(8)
    assert loss(-up, up, "magnitude") == pytest.approx(0, abs=1e-10)
    assert loss(-up, up, "energy") == pytest.approx(0, abs=1e-10)
    assert loss(-up, up, "gradient") == pytest.approx(2 / WIDTH * 4, rel=1e-5)


def test_a_step_out_of_place_pays_where_places_count() -> None:
    gt, pred = step_at(4), step_at(5)
    # Two columns have a gradient of 1 in one picture alone; energy asks for the window's mean, which is the same.
    assert loss(pred, gt, "magnitude") == pytest.approx(2 / WIDTH, rel=3e-3)
    assert loss(pred, gt, "energy") == pytest.approx(0, abs=1e-10)


def test_the_mean_of_two_places_minimises_a_squared_error_and_not_the_energy() -> None:
    """Of two equally likely edges a squared error prefers the blur between them; their energy, either edge."""
    first, second = step_at(2), step_at(6)  # in one window of 8
    blur = (first + second) / 2

    def expected(pred: Tensor, kind: str) -> float:
        return loss(pred, first, kind) + loss(pred, second, kind)

    assert expected(blur, "weighted_mse") < expected(first, "weighted_mse")
    assert expected(blur, "energy") > expected(first, "energy") + 1e-4


def test_windows_at_the_border_are_what_is_left_of_them() -> None:
    gt = torch.zeros(1, 1, 10, 12, dtype=torch.float64)
    pred = gt.clone()
    pred[..., 11:] = 1.0  # a step between columns 10 and 11, in the windows of 4 columns at the right
    error = ERRORS["energy"]()(pred, gt)
    assert error.shape == gt.shape
    assert torch.allclose(error[..., 8:], torch.tensor((2 / 4) ** 2, dtype=torch.float64))
    assert not error[..., :8].any()


@pytest.mark.parametrize("kind", FORMULAS)
def test_gradients_are_those_of_differences(kind: str) -> None:
    rng = torch.Generator().manual_seed(3)
    pred, gt = (torch.rand(1, 2, 9, 10, generator=rng, dtype=torch.float64) * 2 - 1 for _ in range(2))
    error = ERRORS[kind]()
    assert torch.autograd.gradcheck(lambda p: error(p, gt), [pred.requires_grad_()])


@pytest.mark.parametrize("kind", FORMULAS)
def test_a_perfect_prediction_has_no_gradient_and_nothing_undefined(kind: str) -> None:
    pred = step_at(8).requires_grad_()
    (gradient,) = torch.autograd.grad(ERRORS[kind]()(pred, step_at(8)).sum(), pred)
    assert gradient.isfinite().all() and float(gradient.abs().max()) < 1e-6
