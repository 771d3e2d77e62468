import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from reference.models import latents, losses, pair, stage1
from reference.parity import noise, relative_error
from torch import Tensor

from basicsr.utils.errors import UserError
from ldm.models.diffusion.ddpm import LatentDiffusionSRTextWT
from ldm.models.diffusion.process import Process
from ldm.models.diffusion.schedule import Schedule, make_betas
from ldm.models.diffusion.training_loss import TrainingLoss

KINDS = ("eps", "v", "x0")
TIMES = {"low": torch.tensor([20, 180]), "high": torch.tensor([640, 985])}
WEIGHT = 0.25
Arrays = Callable[[str], dict[str, np.ndarray]]


@pytest.fixture(scope="module", params=KINDS)
def models(request: pytest.FixtureRequest) -> tuple[LatentDiffusionSRTextWT, LatentDiffusionSRTextWT]:
    """Of one parameterisation, without and with the edge loss."""
    plain, edged = (stage1("tiny", parameterization=request.param, edge_loss_weight=w) for w in (0.0, WEIGHT))
    return plain, edged


def with_output_gradient(model: LatentDiffusionSRTextWT, t: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor, Tensor]:
    """Loss, parts, the U-Net's output and the gradient of the loss there."""
    kept: list[Tensor] = []
    hook = model.model.diffusion_model.register_forward_hook(lambda _module, _given, output: kept.append(output))
    loss, parts = losses(model, t, "tiny")
    hook.remove()
    return loss, parts, kept[0], torch.autograd.grad(loss, kept[0])[0]


@pytest.mark.parametrize("case", TIMES)
def test_losses_and_edge_gradient_match_the_published_network(
    case: str, models: tuple[LatentDiffusionSRTextWT, LatentDiffusionSRTextWT], arrays: Arrays
) -> None:
    model, edged = models
    stored, start = arrays("training_and_sampling"), f"{model.parameterization}_{case}_"
    reference = {name.removeprefix(start): stored[name] for name in stored if name.startswith(start)}
    plain, plain_parts, output, plain_gradient = with_output_gradient(model, TIMES[case])
    loss, parts, _, gradient = with_output_gradient(edged, TIMES[case])
    assert relative_error(output, reference["model_output"]) < 1e-4
    for name in ("loss_simple", "loss_vlb", "loss"):
        assert relative_error(plain_parts[f"train/{name}"], reference[f"train_{name}"]) < 1e-4
    assert relative_error(parts["train/loss_edge"], reference["loss_edge"]) < 1e-3
    assert relative_error(parts["train/edge_map_mse"], reference["edge_map_mse"]) < 3e-2
    assert relative_error((gradient - plain_gradient) / WEIGHT, reference["loss_edge_grad"]) < 1e-2
    given = latents("tiny")
    n = model.process.noised(given["x_start"], t=TIMES[case], noise=given["noise"])
    x_0 = model.process.x0(output, n)
    assert relative_error(x_0, reference["pred_x0"]) < 1e-4
    assert torch.equal(loss.detach(), plain.detach() + WEIGHT * parts["train/loss_edge"])


def test_edges_of_the_decoded_truth_match(arrays: Arrays) -> None:
    model = stage1("tiny")
    with torch.no_grad():
        edges = model.edge_loss.generator.edges_01(model.decode(latents("tiny")["x_start"]))
    want = np.unpackbits(arrays("training_and_sampling")["gt_edge"]).reshape(2, 128, 128)
    assert (edges[:, 0].numpy() != want).mean() < 1e-3


def toy(kind: str = "eps", **params: Any) -> tuple[Tensor, dict[str, Tensor], Tensor, Tensor]:
    """The loss of a made-up output, its parts, the error and the weights of the bound."""
    schedule, t = Schedule.from_betas(make_betas(1000, 0.00085, 0.0120)), torch.tensor([0, 70, 900])
    shape = (3, 4, 2, 2)
    x_start, eps, output = noise("x", shape), noise("e", shape), noise("o", shape)
    process = Process(schedule, torch.arange(1000), kind)
    n = process.noised(x_start, t=t, noise=eps)
    report = TrainingLoss(**params)(process, n, output)
    return report.total, report.parts, output - process.target(n), process.vlb_weights()[t]


def test_the_loss_is_the_mean_squared_error_by_default() -> None:
    total, parts, error, _ = toy()
    assert float(total) == pytest.approx(float(error.square().mean()), rel=1e-6)
    assert set(parts) == {"loss", "loss_simple", "loss_vlb"}
    assert not any(value.requires_grad for value in parts.values())


@pytest.mark.parametrize("kind", KINDS)
def test_the_bound_weighs_every_sample_by_its_timestep(kind: str) -> None:
    total, parts, error, weights = toy(kind, l_simple_weight=0.5, original_elbo_weight=2.0)
    bound = (weights * error.square().mean(dim=(1, 2, 3))).mean()
    assert float(parts["loss_vlb"]) == pytest.approx(float(bound), rel=1e-5)
    assert float(total) == pytest.approx(float(0.5 * error.square().mean() + 2 * bound), rel=1e-5)


def test_the_output_variance_divides_the_error_and_is_added() -> None:
    total, parts, error, _ = toy(logvar_init=0.3)
    assert float(total) == pytest.approx(float(error.square().mean()) / math.exp(0.3) + 0.3, rel=1e-6)
    assert float(parts["loss_simple"]) == pytest.approx(float(error.square().mean()), rel=1e-6)


def test_l1_takes_the_absolute_error() -> None:
    total, _, error, _ = toy(loss_type="l1")
    assert float(total) == pytest.approx(float(error.abs().mean()), rel=1e-6)
    with pytest.raises(UserError, match="loss_type is 'huber'; choose l2"):
        toy(loss_type="huber")


def test_a_share_of_the_draws_is_of_the_last_step() -> None:
    def drawn(share: float, training: bool = True) -> Tensor:
        rng = torch.Generator().manual_seed(5)
        return TrainingLoss(last_step_share=share).draw_steps(10, 4000, rng, training=training)

    plain = torch.randint(10, (4000,), generator=torch.Generator().manual_seed(5))
    assert torch.equal(drawn(0), plain) and (drawn(1) == 9).all() and torch.equal(drawn(1, training=False), plain)
    some = drawn(0.4)
    assert float((some == 9).float().mean()) == pytest.approx(0.4 + 0.6 * 0.1, abs=0.03)
    assert all(float((some == step).float().mean()) == pytest.approx(0.06, abs=0.02) for step in range(9))
    with pytest.raises(UserError, match="last_step_share is 1.5"):
        TrainingLoss(last_step_share=1.5)


def test_a_model_trains_on_the_steps_that_its_share_says_and_validates_on_all(monkeypatch: pytest.MonkeyPatch) -> None:
    model, p_losses = stage1(parameterization="v", last_step_share=1), LatentDiffusionSRTextWT.p_losses
    seen: list[list[int]] = []

    def noted(*args: Any, **rest: Any) -> Any:
        seen.append(args[3].tolist())
        return p_losses(model, *args, **rest)

    monkeypatch.setattr(model, "p_losses", noted)
    for training in (True, False):
        model.train(training)
        model._step(pair(batch=4), torch.Generator().manual_seed(1))
    assert seen[0] == [999] * 4 and max(seen[1]) < 999
