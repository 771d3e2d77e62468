"""DPM-Solver++ and UniPC against the exact solution of the probability flow of Gaussian data."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from reference.models import stage1
from reference.parity import noise, relative_error
from torch import Tensor

from ldm.models.diffusion.ddpm import LatentDiffusionSRTextWT
from ldm.models.diffusion.guidance import Guidance
from ldm.models.diffusion.process import Noised, Noisy, Process
from ldm.models.diffusion.reference import ReferencePull, towards
from ldm.models.diffusion.sampling import (
    SAMPLERS,
    Known,
    Sampling,
    corrected_mean,
    log_snr,
    predicted_mean,
    sample_ddim,
)
from ldm.models.diffusion.schedule import Schedule, make_betas
from ldm.models.diffusion.tiling import Tiling

SOLVERS = ("dpmpp", "unipc")
BETAS = make_betas(1000, 0.00085, 0.0120)
# A process that is smooth in lambda down to step 0, where the published one rises by 0.35 from step 1 alone.
SMOOTH = np.array([0.2, *[0.0022] * 1999])
MEAN = torch.tensor([0.5, -1.0, 0.0, 2.0], dtype=torch.float64).view(1, 4, 1, 1)
DEVIATION = torch.tensor([0.3, 1.0, 2.0, 0.05], dtype=torch.float64).view(1, 4, 1, 1)
Denoise = Callable[[Tensor, Tensor], Tensor]


def silent(shape: torch.Size) -> Tensor:
    raise AssertionError("a deterministic sampler draws no noise")


def gaussian(betas: np.ndarray, kind: str, told: list[int] | None = None) -> Denoise:
    """The exact denoiser of data N(MEAN, DEVIATION^2): E[x_0 | x_t], as the network would put it."""
    process = Process(Schedule.from_betas(betas), torch.arange(len(betas)), kind)
    abar = np.cumprod(1 - betas)

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        if told is not None:
            told.append(int(t[0]))
        a = float(abar[int(t[0])])
        x_0 = (a**0.5 * DEVIATION**2 * x + (1 - a) * MEAN) / (a * DEVIATION**2 + 1 - a)
        eps = replace(process, parameterization="x0").eps(x_0, Noisy(x, t))
        return process.target(Noised(x_t=x, t=t, z_gt=x_0, noise=eps, t_original=t))

    return denoise


def flow(x: Tensor, start: float, end: float) -> Tensor:
    """Where the probability flow of these data leads from x, at abar `start`."""
    spread = [(a * DEVIATION**2 + 1 - a).sqrt() for a in (start, end)]
    moved: Tensor = end**0.5 * MEAN + (x - start**0.5 * MEAN) * spread[1] / spread[0]
    return moved


def solve(sampler: str, denoise: Denoise, x: Tensor, steps: int, betas: np.ndarray = SMOOTH, **options: Any) -> Tensor:
    chosen: dict[str, Any] = {"parameterization": "eps", "noise": silent, **options}
    return SAMPLERS[sampler](denoise, x, betas, Sampling(steps, sampler), **chosen)


@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
@pytest.mark.parametrize("sampler", SOLVERS)
def test_the_error_falls_with_the_square_of_the_steps(sampler: str, kind: str) -> None:
    x = noise("xT", (2, 4, 3, 3)).double()
    abar = np.cumprod(1 - SMOOTH)
    exact = flow(x, float(abar[-1]), float(abar[0]))

    def error(sampler: str, steps: int) -> float:
        z = solve(sampler, gaussian(SMOOTH, kind), x, steps, parameterization=kind)
        return float((z - exact).square().mean().sqrt())

    errors = [error(sampler, steps) for steps in (40, 80, 160)]
    orders = np.log2(np.divide(errors[:-1], errors[1:]))
    assert (orders > 1.8).all(), (errors, orders)
    assert errors[0] < 0.2 * error("ddim", 40)
    first_order = np.log2(error("ddim", 40) / error("ddim", 80))
    assert 0.8 < first_order < 1.2  # so that the test can tell


def test_the_corrector_is_exact_for_a_parabola_and_the_predictor_for_a_constant() -> None:
    # lambda is what x_0 is a polynomial of; its mean over the way weighs e^lambda.
    abars = (0.1, 0.3, 0.8)
    lambdas = [log_snr(a) for a in abars]

    def point(i: int) -> Known:
        return Known(abars[i], torch.tensor([1.0, lambdas[i], lambdas[i] ** 2], dtype=torch.float64))

    grid = np.linspace(lambdas[1], lambdas[2], 200001)
    weights = np.exp(grid)
    exact = [np.trapezoid(weights * grid**k, grid) / np.trapezoid(weights, grid) for k in range(3)]
    assert np.allclose(corrected_mean(point(1), point(0), point(2)), exact, rtol=0, atol=1e-8)
    predicted = predicted_mean(point(1), point(0), abars[2])
    assert predicted[0] == 1 and np.isclose(predicted[1], (lambdas[1] + lambdas[2]) / 2)
    assert np.isclose(corrected_mean(point(1), None, point(2))[1], (lambdas[1] + lambdas[2]) / 2)


@pytest.mark.parametrize("sampler", SOLVERS)
@pytest.mark.parametrize("start_t", [None, 300])
def test_one_step_is_ddims(sampler: str, start_t: int | None) -> None:
    betas = BETAS if start_t is None else BETAS[: start_t + 1]
    x, told = noise("xT", (1, 4, 3, 3)), list[int]()
    z = solve(sampler, gaussian(betas, "v", told), x, 1, betas, parameterization="v")
    ddim = sample_ddim(gaussian(betas, "v"), x, betas, Sampling(1, "ddim"), parameterization="v", noise=silent)
    assert torch.equal(z.float(), ddim.float()) or relative_error(z, ddim) < 1e-6
    assert told == [len(betas) - 1]


@pytest.mark.parametrize("sampler", SOLVERS)
def test_the_first_of_several_steps_is_ddims(sampler: str) -> None:
    x, seen = noise("xT", (1, 4, 3, 3)).double(), list[Tensor]()
    denoise = gaussian(BETAS, "eps")

    def watched(x: Tensor, t: Tensor) -> Tensor:
        seen.append(x)
        return denoise(x, t)

    solve(sampler, watched, x, 4, BETAS)
    abar = np.cumprod(1 - BETAS)[Sampling(4, sampler).timesteps(BETAS)[:1:-1]]
    eps = denoise(x, torch.tensor([999]))
    x_0 = (x - np.sqrt(1 - abar[0]) * eps) / np.sqrt(abar[0])
    assert relative_error(seen[1], np.sqrt(abar[1]) * x_0 + np.sqrt(1 - abar[1]) * eps) < 1e-5


@pytest.mark.parametrize("sampler", SOLVERS)
@pytest.mark.parametrize("steps", [1, 2, 5, 20, 500, 999, 1000])
def test_the_way_is_divided_evenly_in_lambda_and_no_step_is_taken_twice(sampler: str, steps: int) -> None:
    told = Sampling(steps, sampler).timesteps(BETAS)
    assert len(told) == min(steps, 999) and told == sorted(set(told)) and told[0] > 0 and told[-1] == 999
    lambdas = [log_snr(a) for a in np.cumprod(1 - BETAS)]
    if steps <= 5:  # with more, whole steps are too far apart near step 0
        ways = -np.diff([lambdas[t] for t in (0, *told)])
        assert np.allclose(ways, (lambdas[0] - lambdas[-1]) / steps, rtol=0.15)


@pytest.mark.parametrize("sampler", SOLVERS)
def test_the_network_is_asked_where_it_was_said(sampler: str) -> None:
    betas, seen = SMOOTH[:10], list[int]()
    z = solve(sampler, gaussian(betas, "eps", seen), noise("xT", (1, 4, 2, 2)), 10, betas)
    assert seen == [*range(9, 0, -1)] and z.isfinite().all()


def test_a_process_of_a_single_step_is_stayed_at() -> None:
    x = noise("xT", (1, 4, 2, 2)).double()
    for sampler in SOLVERS:
        assert relative_error(solve(sampler, gaussian(BETAS[:1], "eps"), x, 1, BETAS[:1]), x) < 1e-9


@pytest.mark.parametrize("sampler", SOLVERS)
def test_what_a_reference_corrects_is_what_is_gone_on_with(sampler: str) -> None:
    x, z_ref = noise("xT", (1, 4, 3, 3)).double(), noise("ref", (1, 4, 3, 3)).double()
    pull = towards(z_ref, ReferencePull(0.5, 1, (0, 1000)))  # all the way, at every step
    z = solve(sampler, gaussian(BETAS, "eps"), x, 5, BETAS, correct=pull)
    abar = np.cumprod(1 - BETAS)[[999, 0]]
    ratio = np.sqrt((1 - abar[1]) / (1 - abar[0]))
    assert relative_error(z, ratio * x + (np.sqrt(abar[1]) - ratio * np.sqrt(abar[0])) * z_ref) < 1e-6


@pytest.fixture(scope="module")
def few() -> LatentDiffusionSRTextWT:
    """A model that was trained on few steps of the process."""
    return stage1(time_replace=10).eval()


@pytest.mark.parametrize("sampler", SOLVERS)
def test_a_model_samples_in_tiles_guided_and_whatever_it_was_trained_on(
    sampler: str, few: LatentDiffusionSRTextWT
) -> None:
    z_lq, x = noise("lq", (1, 4, 8, 8)), noise("xT", (1, 4, 8, 8))
    guidance = Guidance(noise("ctx", (1, 7, 32)), noise("uncond", (1, 7, 32)), 3.0)
    seen: list[int] = []

    def progress(steps: Iterable[int]) -> Iterable[int]:
        for step in steps:
            seen.append(step)
            yield step

    whole = few.sample(z_lq, guidance, Sampling(3, sampler), x_T=x, noise=silent, progress=progress)
    assert seen == [2, 1, 0]
    tiled = few.sample(z_lq, guidance, Sampling(3, sampler), x_T=x, noise=silent, tiling=Tiling(8, 0))
    assert relative_error(tiled, whole) < 1e-5
    all_of_them = stage1().eval().sample(z_lq, guidance, Sampling(3, sampler), x_T=x, noise=silent)
    assert torch.equal(whole, all_of_them)
