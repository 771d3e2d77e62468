"""Noise against its closed-form statistics."""

from collections.abc import Callable

import pytest
import torch

from basicsr.data.degradations import add_gaussian_noise, add_poisson_noise

Noise = Callable[..., torch.Tensor]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_gaussian_noise_has_the_sigma_asked_for() -> None:
    img = torch.full((3, 3, 128, 128), 0.5)
    noise = (add_gaussian_noise(img, (12, 12), 0.0, rng()) - img) * 255
    for sample in noise:
        assert float(sample.std()) == pytest.approx(12, rel=0.02)
        assert abs(float(sample.mean())) < 0.2


def test_sigma_is_drawn_for_each_sample() -> None:
    img = torch.full((64, 3, 32, 32), 0.5)
    sigmas = ((add_gaussian_noise(img, (2, 20), 0.0, rng()) - img) * 255).flatten(1).std(1)
    assert 1.8 < float(sigmas.min()) < 5 and 17 < float(sigmas.max()) < 21
    assert float(sigmas.mean()) == pytest.approx(11, abs=2)


def stepped(levels: int) -> torch.Tensor:
    """(1, 3, 240, 240), grey between 64 and 191, in so many distinct grey levels."""
    row = torch.linspace(64, 191, levels).round()[torch.arange(240) * levels // 240]
    return (row / 255).expand(1, 3, 240, 240)


@pytest.mark.parametrize(("levels", "photons"), [(120, 128), (33, 64), (64, 64)])
def test_poisson_noise_has_the_variance_of_its_photons(levels: int, photons: int) -> None:
    img = stepped(levels)
    noise = add_poisson_noise(img, (0.25, 0.25), 0.0, rng()) - img  # a quarter of the noise: hardly anything is clamped
    for part in (slice(0, 40), slice(200, 240)):
        want = 0.25**2 * float(img[..., part].mean()) / photons
        assert float(noise[..., part].square().mean()) == pytest.approx(want, rel=0.04)


def test_poisson_photons_are_counted_for_each_sample() -> None:
    few, many = stepped(3), stepped(120)
    noise = add_poisson_noise(torch.cat([few, many]), (0.1, 0.1), 0.0, rng()) - torch.cat([few, many])
    assert float(noise[0].var() / noise[1].var()) == pytest.approx(128 / 4, rel=0.1)


@pytest.mark.parametrize("add", [add_gaussian_noise, add_poisson_noise])
def test_gray_noise_is_equal_in_the_channels_as_often_as_told(add: Noise) -> None:
    img = stepped(60).repeat(60, 1, 1, 1)[..., :16]
    noise = add(img, (1, 1), 0.4, rng()) - img
    equal = (noise - noise[:, :1]).abs().flatten(1).amax(1) < 1e-6
    assert float(equal.float().mean()) == pytest.approx(0.4, abs=0.15)
    assert (add(img, (1, 1), 1.0, rng()) - img).var(1).max() < 1e-10


@pytest.mark.parametrize("add", [add_gaussian_noise, add_poisson_noise])
def test_noise_keeps_range_dtype_and_stream(add: Noise) -> None:
    img = torch.rand(2, 3, 5, 7, dtype=torch.float64, generator=rng(1))
    state = torch.get_rng_state()
    out = add(img, (5, 50), 0.5, rng(2))
    assert out.dtype == torch.float64 and out.shape == img.shape
    assert out.min() >= 0 and out.max() <= 1 and not torch.equal(out, img)
    assert torch.equal(out, add(img, (5, 50), 0.5, rng(2)))
    assert not torch.equal(out, add(img, (5, 50), 0.5, rng(3)))
    assert torch.equal(torch.get_rng_state(), state)


def test_grey_poisson_noise_is_that_of_the_luma() -> None:
    """Shot noise grows with brightness: pure green is five times as bright as pure blue, and as red twice as much."""
    spread = {}
    for name, colour in {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1)}.items():
        img = torch.full((1, 3, 200, 200), 0.5) + 0.25 * torch.tensor(colour).view(1, 3, 1, 1)
        noise = add_poisson_noise(img, (0.01, 0.01), 1.0, rng()) - img
        assert torch.allclose(noise, noise[:, :1], atol=1e-6)
        spread[name] = float(noise.var()) / 0.01**2
    # One grey level is one photon at white here; the mean is 0.5 + 0.25 times the colour's weight, in 8-bit levels.
    for name, weight in {"red": 0.299, "green": 0.587, "blue": 0.114}.items():
        assert spread[name] == pytest.approx(round(255 * (0.5 + 0.25 * weight)) / 255, rel=0.03)
    assert spread["green"] > 1.08 * spread["red"] > 1.08 * 1.02 * spread["blue"]
