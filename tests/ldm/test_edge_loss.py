import copy
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from reference.models import gradients, latents, losses, pair, stage1
from reference.parity import relative_error
from torch import Tensor

from basicsr.utils.errors import UserError
from basicsr.utils.rng import torch_rng
from ldm.models.diffusion.ddpm import LatentDiffusionSRTextWT
from ldm.models.diffusion.training_loss import LossReport
from ldm.modules.losses.edge_loss import EdgeLoss

T = torch.tensor([150, 700])
KINDS = ("eps", "v", "x0")


def half_white() -> Tensor:
    """Black on the left, white on the right: (1, 3, 16, 16)."""
    return torch.where(torch.arange(16) < 8, -1.0, 1.0).expand(1, 3, 16, 16).clone()


def canny(image_pm1: Tensor) -> np.ndarray:
    """The edges of a (3, H, W) picture by OpenCV alone, (H, W) in {0, 1}."""
    pixels = ((image_pm1.clamp(-1, 1) + 1) * 127.5).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    grey = cv2.GaussianBlur(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), (5, 5), 1.4)
    return np.asarray(cv2.Canny(grey, 100, 200) / 255)


def kept(compute: Callable[[], object]) -> int:
    """Numbers that the graph of what is computed holds on to."""
    sizes: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        compute()
    return sum(sizes)


# The formula


def test_a_uniform_error_is_weighted_by_the_share_of_edges() -> None:
    gt = half_white()
    edges = canny(gt[0])
    assert edges.sum() == 16  # one column
    terms = EdgeLoss()(gt + 0.5, gt)
    assert float(terms.loss) == pytest.approx(0.25 * (1 / 16 + 0.1), rel=1e-6)


def test_the_loss_is_the_formula() -> None:
    gt, pred = pair(0).gt_pm1, pair(0).lq_pm1
    edges = np.stack([canny(image) for image in gt])[:, None]
    wrong = np.stack([canny(image) for image in pred])[:, None]
    terms = EdgeLoss()(pred, gt)
    assert 0 < edges.mean() < 1
    assert float(terms.loss) == pytest.approx(float(((pred - gt).numpy() ** 2 * (edges + 0.1)).mean()), rel=1e-5)
    assert float(terms.edge_map_mse) == pytest.approx(float(((wrong - edges) ** 2).mean()), rel=1e-5)


def test_an_error_on_an_edge_weighs_eleven_times_one_elsewhere() -> None:
    gt = half_white()
    column = int(np.flatnonzero(canny(gt[0])[5])[0])
    on, off = gt.clone(), gt.clone()
    on[0, 0, 5, column] += 0.2
    off[0, 0, 5, 1] += 0.2
    loss = EdgeLoss()
    assert float(loss(on, gt).loss / loss(off, gt).loss) == pytest.approx(11, rel=1e-4)


def test_only_the_prediction_gets_a_gradient() -> None:
    gt, pred = half_white().requires_grad_(), half_white().mul(0.5).requires_grad_()
    terms = EdgeLoss()(pred, gt)
    terms.loss.backward()
    assert gt.grad is None and pred.grad is not None
    assert not terms.edge_map_mse.requires_grad
    weight = torch.from_numpy(canny(gt.detach()[0])) + 0.1
    assert relative_error(pred.grad, (2 * (pred - gt) * weight / gt.numel()).detach()) < 1e-5


def test_predictions_beyond_the_range_do_not_wrap() -> None:
    # As a byte, 1.1 would wrap to 11, and the step from black to white would vanish.
    gt = half_white()
    pred = torch.where(gt > 0, 1.1, -1.0)
    terms = EdgeLoss()(pred, gt)
    assert float(terms.edge_map_mse) == 0
    assert float(terms.loss) > 0  # but nor is the error clamped


# In a training step


def test_at_weight_0_a_step_is_that_of_a_model_without_the_feature() -> None:
    def step(**params: Any) -> tuple[LatentDiffusionSRTextWT, Tensor, list[Tensor]]:
        model = stage1(prompt="a photo", **params)
        del model.first_stage_model.decoder  # no step of these needs it
        loss, parts = model._step(pair(), torch_rng("cpu", "test"))
        assert set(parts) == {"train/loss", "train/loss_simple", "train/loss_vlb"}
        optimizer = model.configure_optimizers()
        loss.backward()
        optimizer.step()
        return model, loss, gradients(model)

    (plain, loss, plain_gradients), (zero, loss_0, gradients_0) = step(), step(edge_loss_weight=0.0)
    assert torch.equal(loss, loss_0)
    assert all(torch.equal(a, b) for a, b in zip(plain_gradients, gradients_0, strict=True))
    after = zip(plain.state_dict().values(), zero.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in after)


@pytest.mark.parametrize("kind", KINDS)
def test_the_total_contains_the_edge_term_and_draws_nothing(kind: str) -> None:
    plain = stage1(parameterization=kind)
    edged = stage1(parameterization=kind, edge_loss_weight=0.3)
    loss, parts = plain._step(pair(), torch_rng("cpu", "test"))
    total, edge_parts = edged._step(pair(), torch_rng("cpu", "test"))
    assert torch.equal(edge_parts["train/loss_simple"], parts["train/loss_simple"])
    assert edge_parts["train/loss_edge"] > 0
    assert torch.equal(total, loss + 0.3 * edge_parts["train/loss_edge"])
    assert torch.equal(edge_parts["train/loss"], total)
    assert not any(value.requires_grad for value in edge_parts.values())


@pytest.mark.parametrize("unfrozen_diff", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_edge_term_alone_reaches_every_trainable_tensor(kind: str, unfrozen_diff: bool) -> None:
    model = stage1(parameterization=kind, edge_loss_weight=1.0, l_simple_weight=0.0, unfrozen_diff=unfrozen_diff)
    loss, parts = losses(model, T)
    assert torch.equal(loss.detach(), parts["train/loss_edge"])
    loss.backward()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert parameter.grad is None, name
            continue
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert torch.count_nonzero(parameter.grad) > 0, name


def test_the_truth_is_decoded_without_a_graph() -> None:
    model = stage1(edge_loss_weight=0.1, parameterization="v")
    z, output = (torch.randn(2, 4, 8, 8, requires_grad=True) for _ in range(2))
    n = model.process.noised(z, t=T, noise=torch.randn(2, 4, 8, 8))
    one = kept(lambda: model.edge_loss(model.decode(z), pair().gt_pm1))
    both = kept(lambda: model.edge_term(LossReport(torch.tensor(0.0), {}), model.process, n, output))
    assert both < 1.2 * one


def test_evaluation_computes_none_of_it() -> None:
    model = stage1(edge_loss_weight=0.1).eval()
    del model.first_stage_model.decoder  # nothing is decoded
    loss, parts = losses(model, T)
    assert set(parts) == {"val/loss", "val/loss_simple", "val/loss_vlb"}
    assert torch.equal(loss, losses(stage1(), T)[0])


def test_a_checkpointed_decoder_gives_the_same_loss_and_gradients() -> None:
    def step(edge_decoder_checkpoint: bool) -> tuple[Tensor, list[Tensor], int]:
        model = stage1(edge_loss_weight=1.0, edge_decoder_checkpoint=edge_decoder_checkpoint)
        size = kept(lambda: losses(model, T))
        loss, _ = losses(model, T)
        loss.backward()
        return loss, gradients(model), size

    (plain, plain_gradients, plain_kept), (recomputed, recomputed_gradients, recomputed_kept) = step(False), step(True)
    assert torch.equal(plain, recomputed)
    assert all(relative_error(a, b) < 1e-5 for a, b in zip(recomputed_gradients, plain_gradients, strict=True))
    assert recomputed_kept < 0.9 * plain_kept


def test_mixed_precision_works_and_compares_pictures_in_float32() -> None:
    model = stage1(edge_loss_weight=0.1)
    exact, exact_parts = losses(model, T)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        decoded_pm1 = model.decode(latents()["x_start"])
        assert decoded_pm1.dtype == torch.bfloat16
        terms, wide = (model.edge_loss(image, pair().gt_pm1) for image in (decoded_pm1, decoded_pm1.float()))
        assert torch.equal(terms.loss, wide.loss) and torch.equal(terms.edge_map_mse, wide.edge_map_mse)
        loss, parts = losses(model, T)
    assert parts["train/loss_edge"].dtype == torch.float32
    assert relative_error(parts["train/loss_edge"], exact_parts["train/loss_edge"]) < 0.1
    assert relative_error(loss, exact) < 0.05
    loss.backward()
    assert all(torch.isfinite(gradient).all() for gradient in gradients(model))


def test_steps_on_the_edge_term_lower_it() -> None:
    model = stage1(edge_loss_weight=1.0, l_simple_weight=0.0, parameterization="v")
    model.learning_rate = 1e-3
    optimizer, history = model.configure_optimizers(), []
    for _ in range(8):
        loss, _ = losses(model, T)
        history.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert history[-1] < 0.9 * history[0]


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf"), float("-inf")])
def test_weights_that_make_no_sense_are_refused(weight: float) -> None:
    with pytest.raises(UserError, match="edge_loss_weight.* is"):
        stage1(edge_loss_weight=weight)


def test_the_start_says_that_it_is_on(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="ldm"):
        stage1(filled=False, edge_loss_weight=0.1)
        assert "Edge loss enabled with weight: 0.1" in caplog.messages
        caplog.clear()
        stage1(filled=False)
    assert not any("Edge loss" in message for message in caplog.messages)


def test_nothing_of_it_is_in_the_state_dict() -> None:
    edged = stage1(filled=False, edge_loss_weight=0.1, edge_decoder_checkpoint=True)
    assert set(edged.state_dict()) == set(stage1(filled=False).state_dict())
    assert set(copy.deepcopy(edged).state_dict()) == set(edged.state_dict())


def test_the_probe_measures_at_any_weight_and_always_the_same() -> None:
    off, on = stage1().edge_probe(pair()), stage1(edge_loss_weight=0.5).edge_probe(pair())
    assert off == on
    assert set(off) == {"loss_edge", "edge_map_mse"}
    assert off["loss_edge"] > 0
