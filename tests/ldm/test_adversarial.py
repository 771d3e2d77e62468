"""The discriminator and the loss of CFW against formulas written here, from the papers, in NumPy and plain torch."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from basicsr.utils.errors import UserError
from basicsr.utils.rng import torch_rng
from ldm.modules.distributions.distributions import DiagonalGaussianDistribution
from ldm.modules.losses.adversarial import (
    PatchDiscriminator,
    adaptive_weight,
    discriminator_loss,
    weight_gradient,
)
from ldm.modules.losses.perceptual import LastLayer, LPIPSWithDiscriminator


def drawn(name: str, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch_rng("cpu", name))


def close(got: Tensor | float, want: Tensor | float | np.floating) -> bool:
    return bool(torch.allclose(torch.as_tensor(got).double(), torch.as_tensor(want).double(), rtol=1e-5, atol=1e-7))


def loss(**params: object) -> LPIPSWithDiscriminator:
    torch.manual_seed(3)
    return LPIPSWithDiscriminator(**{"disc_start": 0, "kl_weight": 0.0, "perceptual_weight": 0.0, **params})  # type: ignore[arg-type]  # keywords of several types


POSTERIOR = DiagonalGaussianDistribution(torch.cat([drawn("mean", 2, 4, 2, 2), 0.3 * drawn("var", 2, 4, 2, 2)], 1))


def test_the_discriminator_has_the_published_names_and_shapes() -> None:
    got = {key: tuple(value.shape) for key, value in loss().state_dict().items()}
    want: dict[str, tuple[int, ...]] = {"logvar": ()}
    for index, (before, after) in {0: (3, 64), 2: (64, 128), 5: (128, 256), 8: (256, 512), 11: (512, 1)}.items():
        want[f"discriminator.main.{index}.weight"] = (after, before, 4, 4)
        if index in (0, 11):
            want[f"discriminator.main.{index}.bias"] = (after,)
        else:
            for name in ("weight", "bias", "running_mean", "running_var"):
                want[f"discriminator.main.{index + 1}.{name}"] = (after,)
            want[f"discriminator.main.{index + 1}.num_batches_tracked"] = ()
    assert got == want
    # 70 x 70 pixels for each logit: 64 -> 32 -> 16 -> 8 -> 7 -> 6
    assert PatchDiscriminator()(torch.zeros(2, 3, 64, 64)).shape == (2, 1, 6, 6)
    assert PatchDiscriminator(layers=1)(torch.zeros(1, 3, 64, 64)).shape == (1, 1, 30, 30)
    assert [m.out_channels for m in PatchDiscriminator(layers=5).main if isinstance(m, nn.Conv2d)][3:6] == [512] * 3


def test_its_weights_start_as_published() -> None:
    torch.manual_seed(0)
    for module in PatchDiscriminator().main:
        if isinstance(module, nn.Conv2d) and module.out_channels > 1:
            assert abs(float(module.weight.detach().mean())) < 2e-3
            assert float(module.weight.std()) == pytest.approx(0.02, rel=0.05)
        elif isinstance(module, nn.BatchNorm2d):
            assert float(module.weight.mean()) == pytest.approx(1, abs=0.01)
            assert float(module.weight.std()) == pytest.approx(0.02, rel=0.25)
            assert not module.bias.any()


def test_the_discriminator_is_its_formula() -> None:
    network = PatchDiscriminator(layers=2)
    weights = network.state_dict()
    x = image = drawn("x", 2, 3, 16, 16)
    for index, stride in ((0, 2), (2, 2), (5, 1), (8, 1)):
        x = F.conv2d(x, weights[f"main.{index}.weight"], weights.get(f"main.{index}.bias"), stride, 1)
        if index in (2, 5):
            mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
            gain, shift = (weights[f"main.{index + 1}.{name}"].view(1, -1, 1, 1) for name in ("weight", "bias"))
            x = (x - mean) / (variance + 1e-5).sqrt() * gain + shift
        if index != 8:
            x = torch.where(x > 0, x, 0.2 * x)
    assert torch.allclose(network(image), x, rtol=1e-5, atol=1e-6)


def test_both_losses_are_their_formulas() -> None:
    real, fake = drawn("real", 2, 1, 6, 6) * 2, drawn("fake", 2, 1, 6, 6) * 2
    r, f = real.double().numpy(), fake.double().numpy()
    hinge = 0.5 * (np.maximum(0, 1 - r).mean() + np.maximum(0, 1 + f).mean())
    cross_entropy = 0.5 * (-np.log(1 / (1 + np.exp(-r))).mean() - np.log(1 - 1 / (1 + np.exp(-f))).mean())
    assert close(discriminator_loss("hinge", real, fake), hinge)
    assert close(discriminator_loss("vanilla", real, fake), cross_entropy)
    with pytest.raises(UserError, match="did you mean 'hinge'"):
        loss(disc_loss="hing")


@pytest.mark.parametrize("frozen", [False, True])
def test_the_gradient_at_the_last_layer_is_autograds(frozen: bool) -> None:
    layer, below, target = (
        nn.Conv2d(4, 3, 3, padding=1),
        drawn("h", 2, 4, 8, 8).requires_grad_(),
        drawn("y", 2, 3, 8, 8),
    )
    want = torch.autograd.grad((layer(below) - target).abs().mean(), layer.weight)[0]
    layer.requires_grad_(not frozen)
    output = layer(below)
    assert close(weight_gradient((output - target).abs().mean(), output, below, layer), want)


def test_the_adaptive_weight_is_its_formula() -> None:
    nll, g = torch.tensor([3.0, 4.0]), torch.tensor([0.6, 0.8])
    assert close(adaptive_weight(nll, g), 5 / (1 + 1e-4))
    assert float(adaptive_weight(nll, 0 * g)) == 1e4  # 5e4, clamped


@pytest.mark.parametrize("divide_by_batch", [True, False])
def test_the_whole_loss_is_its_formula(divide_by_batch: bool) -> None:
    ours = loss(
        logvar_init=0.3, kl_weight=1e-3, disc_weight=0.025, disc_factor=0.5, pixelloss_weight=2.0,
        divide_by_batch=divide_by_batch,
    )  # fmt: skip
    distances = lambda x, y: (x - y).square().mean((1, 2, 3))  # noqa: E731  (of the form of LPIPS: one for each picture)
    ours.perceptual_weight, ours._perceptual = 0.7, distances
    layer, below = nn.Conv2d(4, 3, 3, padding=1), drawn("h", 2, 4, 32, 32).requires_grad_()
    gt, decoded = drawn("gt", 2, 3, 32, 32).clamp(-1, 1), layer(below)
    total, parts = ours.autoencoder_loss(gt, decoded, POSTERIOR, 7, LastLayer(layer, below))

    rec = 2 * (gt - decoded).abs() + 0.7 * (gt - decoded).square().mean((1, 2, 3))[:, None, None, None]
    nll = (rec / np.exp(0.3) + 0.3).mean() / (2 if divide_by_batch else 1)
    g = -ours.discriminator(decoded).mean()
    norms = [torch.autograd.grad(term, layer.weight, retain_graph=True)[0].norm() for term in (nll, g)]
    d_weight = 0.025 * min(float(norms[0] / (norms[1] + 1e-4)), 1e4)
    mean, logvar = POSTERIOR.mean.double(), POSTERIOR.logvar.double()
    kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).sum() / 2
    want = nll + 0.5 * d_weight * g + 1e-3 * kl
    assert close(total, want)
    assert close(torch.autograd.grad(total, below, retain_graph=True)[0], torch.autograd.grad(want, below)[0])
    for name, value in {"rec_loss": rec.mean(), "nll_loss": nll, "g_loss": g, "d_weight": d_weight, "kl_loss": kl,
                        "disc_factor": 0.5, "logvar": 0.3, "total_loss": want}.items():  # fmt: skip
        assert close(parts.pop(name), value if isinstance(value, float) else value.detach()), name
    assert not parts


def test_the_discriminators_loss_begins_at_its_step_and_is_its_formula() -> None:
    ours, gt, decoded = loss(disc_start=10, disc_factor=2.0), drawn("gt", 2, 3, 32, 32), drawn("rec", 2, 3, 32, 32)
    decoded.requires_grad_()
    value, parts = ours.discriminator_loss(gt, decoded, 10)
    real, fake = ours.discriminator(gt), ours.discriminator(decoded)
    assert close(value, torch.relu(1 - real).mean() + torch.relu(1 + fake).mean())
    assert close(parts["logits_real"], real.mean().detach())
    assert close(parts["logits_fake"], fake.mean().detach())
    torch.autograd.backward(value)
    assert decoded.grad is None
    before, _ = ours.discriminator_loss(gt, decoded, 9)
    total, parts = ours.autoencoder_loss(gt, decoded, POSTERIOR, 9)
    assert float(before) == 0
    assert close(total, (gt - decoded).abs().mean() / 2)  # of two pictures
    assert set(parts) == {
        "total_loss",
        "rec_loss",
        "nll_loss",
        "kl_loss",
        "g_loss",
        "d_weight",
        "logvar",
        "disc_factor",
    }
