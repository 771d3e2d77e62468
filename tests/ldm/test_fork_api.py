"""What scripts written against StableSR and its edge fork call on the model, against our own parts and closed forms."""

import numpy as np
import pytest
import torch
from reference.models import latents, losses, pair, stage1
from reference.parity import noise, relative_error

from basicsr.utils.edge_utils import EdgeMapGenerator
from basicsr.utils.rng import torch_rng
from ldm.models.diffusion.ddpm import LatentDiffusionSRTextWT

T = torch.tensor([150, 700])


@pytest.fixture(scope="module")
def model() -> LatentDiffusionSRTextWT:
    built: LatentDiffusionSRTextWT = stage1(edge_loss_weight=0.25, scale_factor=0.5)
    return built


def test_pictures_and_latents(model: LatentDiffusionSRTextWT) -> None:
    gt_pm1 = pair().gt_pm1
    posterior = model.encode_first_stage(gt_pm1)
    assert torch.equal(posterior.mean, model.first_stage_model.encode(gt_pm1).mean)
    assert not posterior.mean.requires_grad
    assert torch.equal(model.get_first_stage_encoding(posterior.mode()), 0.5 * posterior.mean)
    torch.manual_seed(3)
    drawn = model.get_first_stage_encoding(posterior)
    torch.manual_seed(3)
    assert torch.equal(drawn, 0.5 * posterior.sample()) and not torch.equal(drawn, 0.5 * posterior.mean)


def test_decoding_with_and_without_a_gradient(model: LatentDiffusionSRTextWT) -> None:
    z = noise("z", (1, 4, 8, 8)).requires_grad_()
    plain, differentiable = model.decode_first_stage(z), model.differentiable_decode_first_stage(z)
    assert torch.equal(plain, differentiable) and torch.equal(plain, model.first_stage_model.decode(z / 0.5))
    assert not plain.requires_grad
    (gradient,) = torch.autograd.grad(differentiable.square().sum(), z)
    step = 1e-3 * gradient / gradient.norm()
    with torch.no_grad():
        up, down = (model.decode_first_stage(z + sign * step).square().sum() for sign in (1, -1))
    assert float((up - down) / 2e-3) == pytest.approx(float(gradient.norm()), rel=1e-2)


def test_the_process(model: LatentDiffusionSRTextWT) -> None:
    x, eps = latents()["x_start"], latents()["noise"]
    abar = torch.from_numpy(np.cumprod(1 - np.linspace(0.00085**0.5, 0.0120**0.5, 1000) ** 2))[T].view(2, 1, 1, 1)
    x_t = abar.sqrt() * x + (1 - abar).sqrt() * eps
    v = abar.sqrt() * eps - (1 - abar).sqrt() * x
    assert relative_error(model.q_sample(x, T, eps), x_t) < 1e-5
    assert relative_error(model.predict_start_from_noise(x_t.float(), T, eps), x) < 1e-4
    assert relative_error(model.predict_start_from_z_and_v(x_t.float(), T, v.float()), x) < 1e-5
    torch.manual_seed(3)
    drawn = model.q_sample(x, T)
    torch.manual_seed(3)
    assert torch.equal(drawn, model.q_sample(x, T, torch.randn_like(x)))


def test_networks_and_text(model: LatentDiffusionSRTextWT) -> None:
    given = latents()
    structure = model.structcond_stage_model(given["z_lq"], T)
    got = model.apply_model(given["x_start"], T, given["cond"], structure)
    assert torch.equal(got, model.model.diffusion_model(given["x_start"], T, given["cond"], structure))
    prompts = ["cat", "dog"]
    assert torch.equal(model.get_learned_conditioning(prompts), model.contexts(prompts))
    assert model.get_learned_conditioning(prompts).shape == (2, 5, 32)


def test_the_edge_loss_says_what_it_is(model: LatentDiffusionSRTextWT) -> None:
    assert model.use_edge_loss and model.edge_loss_weight == 0.25
    assert isinstance(model.edge_generator, EdgeMapGenerator) and model.edge_generator is model.edge_loss.generator
    plain = stage1(filled=False)
    assert not plain.use_edge_loss and plain.edge_loss_weight == 0


def test_an_automatic_weight_is_the_one_in_use() -> None:
    model = stage1(edge_loss_weight="auto:0.2", edge_warmup_steps=2)
    assert model.use_edge_loss and model.edge_loss_weight == 1  # nothing is measured yet
    _, parts = losses(model, T)
    assert model.edge_loss_weight == pytest.approx(2 * float(parts["train/edge_weight"]), rel=1e-6)  # half warm
    assert model.edge_loss_weight != 1
    _, parts = model._step(pair(), torch_rng("cpu", "another"))
    assert model.edge_loss_weight == pytest.approx(2 * float(parts["train/edge_weight"]), rel=1e-6)
