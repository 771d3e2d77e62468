"""Kernels against reference arrays, and their draws against the rules."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from basicsr.data import kernels
from basicsr.data.kernels import KernelOptions, draw_final_sinc, draw_kernel
from basicsr.utils.errors import UserError

REFERENCE = np.load(Path(__file__).parent / "data" / "pixel_ops.npz")
OPTIONS: dict[str, Any] = {
    "blur_kernel_size": 21,
    "kernel_list": ["iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso"],
    "kernel_prob": [0.45, 0.25, 0.12, 0.03, 0.12, 0.03],
    "sinc_prob": 0.1,
    "blur_sigma": [0.2, 1.5],
    "betag_range": [0.5, 2.0],
    "betap_range": [1, 1.5],
}


def options(**changes: Any) -> KernelOptions:
    return KernelOptions(**(OPTIONS | changes))


def side(kernel: np.ndarray) -> int:
    """Side of the smallest centred square that holds all that is not 0."""
    y, x = np.nonzero(kernel)
    return int(2 * max(abs(y - 10).max(), abs(x - 10).max()) + 1)


@pytest.mark.parametrize(
    ("name", "kernel"),
    [
        ("iso", kernels.bivariate_gaussian(13, 1.3, 1.3, 0, isotropic=True)),
        ("aniso", kernels.bivariate_gaussian(13, 2.1, 0.7, 0.6, isotropic=False)),
        ("giso", kernels.bivariate_generalized_gaussian(13, 1.3, 1.3, 0, 0.8, isotropic=True)),
        ("ganiso", kernels.bivariate_generalized_gaussian(15, 2.1, 0.7, 0.6, 1.7, isotropic=False)),
        ("piso", kernels.bivariate_plateau(13, 1.3, 1.3, 0, 1.2, isotropic=True)),
        ("paniso", kernels.bivariate_plateau(11, 2.1, 0.7, 0.6, 1.4, isotropic=False)),
        ("sinc", kernels.circular_lowpass_kernel(1.7, 15, pad_to=21)),
        ("sinc7", kernels.circular_lowpass_kernel(2.9, 7)),
    ],
)
def test_against_reference(name: str, kernel: np.ndarray) -> None:
    assert kernel.dtype == np.float64
    np.testing.assert_allclose(kernel, REFERENCE["kernel_" + name], rtol=0, atol=1e-12)


def test_bessel_against_its_series() -> None:
    x = np.linspace(0, 12, 50)
    series = sum((-1) ** m * (x / 2) ** (2 * m + 1) / (math.factorial(m) * math.factorial(m + 1)) for m in range(40))
    np.testing.assert_allclose(kernels._bessel_j1(x), series, atol=1e-11)
    assert abs(kernels._bessel_j1(np.array([44.759318997652822]))[0]) < 1e-13  # the 14th zero of J1


def test_isotropic_ignores_the_second_sigma_and_the_angle() -> None:
    a = kernels.bivariate_gaussian(9, 1.1, 9.0, 1.0, isotropic=True)
    np.testing.assert_allclose(a, kernels.bivariate_gaussian(9, 1.1, 1.1, 0.0, isotropic=False), atol=1e-15)


def test_drawn_kernels_are_padded_normalised_and_of_every_allowed_size() -> None:
    rng = np.random.default_rng(0)
    for largest in (21, 11, 7):
        # The widest plateau has no zeros, so that its size can be seen.
        opts = options(blur_kernel_size=largest, kernel_list=["plateau_iso"], kernel_prob=[1], blur_sigma=[3, 3])
        drawn = [draw_kernel(rng, opts) for _ in range(200)]
        assert {side(k) for k in drawn} == set(range(7, largest + 1, 2))
        for kernel in drawn:
            assert kernel.shape == (21, 21) and kernel.dtype == np.float32
            assert kernel.sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", OPTIONS["kernel_list"])
def test_every_kind_is_what_its_name_says(name: str) -> None:
    opts = options(kernel_list=[name], kernel_prob=[1], sinc_prob=0, blur_sigma=[0.5, 3])
    for seed in range(20):
        kernel = draw_kernel(np.random.default_rng(seed), opts)
        assert kernel.min() >= 0
        np.testing.assert_allclose(kernel, kernel[::-1, ::-1], atol=1e-7)
        turned = np.abs(kernel - np.rot90(kernel)).max()
        assert turned > 1e-4 if name.endswith("aniso") else turned < 1e-6


def test_kinds_come_as_often_as_told() -> None:
    rng = np.random.default_rng(1)
    sinc = np.mean([draw_kernel(rng, options(sinc_prob=0.3)).min() < 0 for _ in range(1000)])
    assert sinc == pytest.approx(0.3, abs=0.05)  # only sinc kernels have negative lobes
    opts = options(sinc_prob=0, kernel_list=["iso", "aniso"], kernel_prob=[3, 1], blur_sigma=[0.8, 3])
    turned = [np.abs(k - np.rot90(k)).max() > 1e-5 for k in (draw_kernel(rng, opts) for _ in range(1000))]
    assert np.mean(turned) == pytest.approx(0.25, abs=0.05)


def test_exponents_fall_below_and_above_one_equally_often() -> None:
    rng = np.random.default_rng(2)
    betas = np.array([kernels._random_beta(rng, 0.5, 4) for _ in range(1000)])
    assert np.mean(betas < 1) == pytest.approx(0.5, abs=0.05)
    assert betas.min() >= 0.5 and 3.5 < betas.max() <= 4
    assert {kernels._random_beta(rng, 1.0, 1.0) for _ in range(5)} == {1.0}
    outside = [kernels._random_beta(rng, 1.5, 4) for _ in range(100)]  # a range without 1 is respected
    assert min(outside) >= 1.5


def test_sinc_cutoff_rule() -> None:
    class Recorder(np.random.Generator):
        def uniform(self, low: float, high: float) -> float:  # type: ignore[override]  # NumPy's takes arrays too
            asked.append((low, high))
            return low

    asked: list[tuple[float, float]] = []
    for size in (7, 11, 13, 21):
        kernels.random_sinc_kernel(Recorder(np.random.PCG64(0)), size)
    pi = math.pi
    assert asked == [(pi / 3, pi), (pi / 3, pi), (pi / 5, pi), (pi / 5, pi)]
    asked.clear()
    lowest = [kernels.circular_lowpass_kernel(pi / 3, size, 21).astype(np.float32) for size in range(7, 22, 2)]
    for seed in range(20):
        drawn = draw_final_sinc(Recorder(np.random.PCG64(seed)), 1.0)
        assert any(np.array_equal(drawn, kernel) for kernel in lowest)
    assert set(asked) == {(pi / 3, pi)}  # at every size


def test_final_sinc_is_the_identity_otherwise() -> None:
    rng = np.random.default_rng(3)
    drawn = [draw_final_sinc(rng, 0.8) for _ in range(500)]
    identity = np.zeros((21, 21), np.float32)
    identity[10, 10] = 1
    assert np.mean([not np.array_equal(k, identity) for k in drawn]) == pytest.approx(0.8, abs=0.06)
    assert all(k.dtype == np.float32 and k.sum() == pytest.approx(1, abs=1e-5) for k in drawn)
    assert np.array_equal(draw_final_sinc(rng, 0.0), identity)


def test_draws_depend_on_the_generator_alone() -> None:
    def run(seed: int) -> list[np.ndarray]:
        rng = np.random.default_rng(seed)
        np.random.rand()  # the global stream must not matter
        return [draw_kernel(rng, options()) for _ in range(5)] + [draw_final_sinc(rng, 0.8)]

    assert all(np.array_equal(a, b) for a, b in zip(run(4), run(4), strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(run(4), run(5), strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kernel_list": ["iso", "anisso"], "kernel_prob": [1, 1]}, "'anisso' is not known: did you mean 'aniso'"),
        ({"kernel_list": "iso"}, "kernel_list2 is 'iso': give a list of iso, aniso"),
        ({"kernel_prob": [0.5, 0.5]}, "kernel_prob2 is .*give 6 probabilities, for iso, aniso"),
        ({"kernel_prob": [0] * 6}, "at least one probability must be above 0"),
        ({"kernel_prob": [-1, 1, 1, 1, 1, 1]}, "kernel_prob2 is -1"),
        ({"blur_sigma": [1.5, 0.2]}, r"blur_sigma2 is \[1.5, 0.2\]: the first number must not be above the second"),
        ({"blur_sigma": [0, 1]}, "blur_sigma2 is 0"),
        ({"betag_range": 3}, "betag_range2 is 3: give two numbers"),
        ({"betap_range": [1, "x"]}, "betap_range2 is 'x': give a number"),
        ({"blur_kernel_size": 10}, "blur_kernel_size2 is 10: give an odd number"),
        ({"blur_kernel_size": 23}, "blur_kernel_size2 is 23: give a number from 7 to 21"),
        ({"blur_kernel_size": 8.5}, "blur_kernel_size2 is 8.5: give a whole number"),
        ({"sinc_prob": float("nan")}, "sinc_prob2 is nan"),
    ],
)
def test_bad_options(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        options(**changes, suffix="2")


def test_anisotropic_kernels_lie_in_every_direction() -> None:
    """The longer axis of the second moments, 0.5 atan2(2 Cxy, Cxx - Cyy), falls into each eighth of a turn alike."""
    rng, (y, x) = np.random.default_rng(0), np.mgrid[-10:11, -10:11]
    opts = options(kernel_list=["aniso"], kernel_prob=[1], sinc_prob=0, blur_sigma=[0.5, 3])
    angles = []
    for _ in range(400):
        kernel = draw_kernel(rng, opts)
        xy, xx, yy = (float((kernel * moment).sum()) for moment in (x * y, x * x, y * y))
        angles.append(0.5 * math.atan2(2 * xy, xx - yy))
    shares = np.histogram(angles, bins=4, range=(-math.pi / 2, math.pi / 2))[0] / 400
    assert shares.min() > 0.18, shares
