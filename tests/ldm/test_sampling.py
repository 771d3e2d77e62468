from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from reference.models import stage1
from reference.parity import CONFIG, SIDE, noise, relative_error
from torch import Tensor

from basicsr.utils.errors import UserError
from ldm.models.diffusion.ddpm import LatentDiffusionSRTextWT
from ldm.models.diffusion.guidance import Guidance
from ldm.models.diffusion.process import Noised, Noisy, Process
from ldm.models.diffusion.sampling import Sampling, noise_of_pictures, sample_ddim, sample_ddpm, truncated
from ldm.models.diffusion.schedule import Schedule, make_betas, respace, space_timesteps
from ldm.models.diffusion.tiling import Tiling

BETAS = make_betas(1000, 0.00085, 0.0120)
CONTEXT = noise("ctx", (2, 7, CONFIG["unet"]["context_dim"]))
UNCOND = noise("uncond", CONTEXT.shape)
Arrays = Callable[[str], dict[str, np.ndarray]]
Models = Callable[[str], LatentDiffusionSRTextWT]


def draws(name: str) -> Callable[[tuple[int, ...]], Tensor]:
    """The reference's noise: the n-th call gives the input `<name><n>`."""
    count = iter(range(1000))
    return lambda shape: noise(f"{name}{next(count)}", shape)


@pytest.mark.parametrize("kind", ["eps", "v"])
@pytest.mark.parametrize("steps", [4, 10])
def test_ancestral_sampling_matches_the_published(kind: str, steps: int, arrays: Arrays, tiny_models: Models) -> None:
    reference, one = arrays("training_and_sampling"), (1, 4, SIDE, SIDE)
    z = tiny_models(kind).sample(
        noise("lq", (2, *one[1:]))[:1],
        Guidance(CONTEXT[:1]),
        Sampling(steps),
        x_T=noise("xT", one),
        noise=draws("step"),
    )
    assert relative_error(z, reference[f"{kind}_ddpm_{steps}"]) < 1e-3


@pytest.mark.parametrize("kind", ["eps", "v"])
def test_tiled_sampling_matches_the_published(kind: str, arrays: Arrays, tiny_models: Models) -> None:
    want = arrays("training_and_sampling")[f"{kind}_canvas_4"]
    z = tiny_models(kind).sample(
        noise("lqc", want.shape),
        Guidance(CONTEXT[:1]),
        Sampling(4),
        x_T=noise("xTc", want.shape),
        noise=draws("cstep"),
        tiling=Tiling(SIDE, SIDE // 2),
    )
    assert relative_error(z, want) < 1e-3


@pytest.mark.parametrize("kind", ["eps", "v"])
@pytest.mark.parametrize(("steps", "eta", "scale"), [(5, 0.0, 1.0), (5, 1.0, 1.0), (10, 0.0, 7.0)])
def test_ddim_and_guidance_match_the_published(
    kind: str, steps: int, eta: float, scale: float, arrays: Arrays, tiny_models: Models
) -> None:
    z = tiny_models(kind).sample(
        noise("lq", (2, 4, SIDE, SIDE)),
        Guidance(CONTEXT, UNCOND, scale),
        Sampling(steps, "ddim", eta),
        x_T=noise("xTd", (2, 4, SIDE, SIDE)),
        noise=draws("dstep"),
    )
    assert relative_error(z, arrays("ddim")[f"{kind}_ddim_{steps}_eta{eta}_scale{scale}"]) < 1e-3


def oracle(kind: str, x_0: Tensor, told: list[int]) -> Callable[[Tensor, Tensor], Tensor]:
    """A denoiser that knows the true latent: its output is exact whatever x is."""
    process = Process(Schedule.from_betas(BETAS), torch.arange(1000), kind)

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        told.append(int(t[0]))
        noise = replace(process, parameterization="x0").eps(x_0, Noisy(x_t=x, t=t))
        return process.target(Noised(x_t=x, t=t, z_gt=x_0, noise=noise, t_original=t))

    return denoise


@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
@pytest.mark.parametrize("steps", [1, 4, 30])
def test_ancestral_sampling_finds_what_the_denoiser_knows(kind: str, steps: int) -> None:
    x_0, told = noise("x", (2, 4, 4, 4)), list[int]()
    z = sample_ddpm(
        oracle(kind, x_0, told),
        noise("xT", x_0.shape),
        BETAS,
        Sampling(steps),
        parameterization=kind,
        noise=draws("step"),
    )
    assert relative_error(z, x_0) < 2e-3
    assert told == ([999] if steps == 1 else space_timesteps(1000, steps)[::-1])


@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
@pytest.mark.parametrize("steps", [1, 5, 30])
def test_ddim_ends_where_its_line_through_x_t_and_x_0_does(kind: str, steps: int) -> None:
    # With a constant x_0, eta 0 keeps eps constant; the published stride ends at step 0, not before it.
    x_0, x_start, told = noise("x", (2, 4, 4, 4)), noise("xT", (2, 4, 4, 4)), list[int]()
    z = sample_ddim(
        oracle(kind, x_0, told),
        x_start,
        BETAS,
        Sampling(steps, "ddim"),
        parameterization=kind,
        noise=draws("unused"),
    )
    assert told == ([999] if steps == 1 else list(range(0, 1000, 1000 // steps))[::-1])
    abar = np.cumprod(1 - BETAS)
    eps = (x_start - np.sqrt(abar[told[0]]) * x_0) / np.sqrt(1 - abar[told[0]])
    assert relative_error(z, np.sqrt(abar[0]) * x_0 + np.sqrt(1 - abar[0]) * eps) < 1e-3


def test_ancestral_noise_has_the_posterior_variance() -> None:
    kept = space_timesteps(1000, 3)
    schedule = Schedule.from_betas(respace(BETAS, kept))
    x_0, ones = torch.zeros(1, 4, 2, 2), []

    def noise_of(shape: torch.Size) -> Tensor:
        ones.append(shape)
        return torch.ones(shape)

    z = sample_ddpm(lambda x, t: x_0, torch.zeros_like(x_0), BETAS, Sampling(3), parameterization="x0", noise=noise_of)
    assert len(ones) == 2  # none at the last step
    assert torch.count_nonzero(z) == 0
    stop = []

    def second(x: Tensor, t: Tensor) -> Tensor:
        stop.append(x.clone())
        return x_0

    sample_ddpm(second, torch.zeros_like(x_0), BETAS, Sampling(3), parameterization="x0", noise=noise_of)
    assert relative_error(stop[1], schedule.posterior_variance[2].sqrt().expand_as(x_0)) < 1e-5


def test_ddim_is_deterministic_at_eta_0_and_noisy_at_1() -> None:
    def denoise(x: Tensor, t: Tensor) -> Tensor:
        return 0.1 * x

    x = noise("xT", (1, 4, 4, 4))

    def sample(eta: float, name: str) -> Tensor:
        settings = Sampling(5, "ddim", eta)
        return sample_ddim(denoise, x, BETAS, settings, parameterization="eps", noise=draws(name))

    assert torch.equal(sample(0.0, "a"), sample(0.0, "b"))
    assert relative_error(sample(1.0, "a"), sample(1.0, "b")) > 0.05


def test_guidance_is_a_line_through_both_predictions(tiny_models: Models) -> None:
    model, z_lq, x = tiny_models("eps"), noise("lq", (1, 4, SIDE, SIDE)), noise("xT", (1, 4, SIDE, SIDE))

    def one_step(guidance: Guidance) -> Tensor:
        return model.sample(z_lq, guidance, Sampling(1), x_T=x)

    # The result of one ancestral step is x_0, which is affine in the network's output.
    towards, away = one_step(Guidance(CONTEXT[:1])), one_step(Guidance(UNCOND[:1]))
    guided = one_step(Guidance(CONTEXT[:1], UNCOND[:1], 3.0))
    assert relative_error(guided, away + 3 * (towards - away)) < 1e-5
    assert relative_error(guided, towards) > 1e-2
    assert torch.equal(one_step(Guidance(CONTEXT[:1], UNCOND[:1], 1.0)), towards)


def test_sampling_starts_from_the_noised_lq_latent(tiny_models: Models) -> None:
    z_lq, seen = noise("lq", (1, 4, SIDE, SIDE)), []
    model = tiny_models("eps")
    hook = model.model.diffusion_model.register_forward_pre_hook(lambda _module, given: seen.append(given[0].clone()))
    model.sample(z_lq, Guidance(CONTEXT[:1]), Sampling(1), noise=draws("start"))
    hook.remove()
    abar = np.cumprod(1 - BETAS)[-1]
    assert relative_error(seen[0], np.sqrt(abar) * z_lq + np.sqrt(1 - abar) * noise("start0", z_lq.shape)) < 1e-5


def test_progress_sees_every_step(tiny_models: Models) -> None:
    seen: list[int] = []

    def progress(steps: Iterable[int]) -> Iterable[int]:
        for step in steps:
            seen.append(step)
            yield step

    tiny_models("eps").sample(noise("lq", (1, 4, SIDE, SIDE)), Guidance(CONTEXT[:1]), Sampling(2), progress=progress)
    assert seen == [1, 0]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sampler": "euler"}, "sampler is 'euler': choose ddpm, ddim, dpmpp, unipc"),
        ({"steps": 0}, "cannot choose 0 of 1000 steps"),
        ({"steps": 1001, "sampler": "ddim"}, "cannot choose 1001 of 1000 steps"),
        ({"steps": 0, "sampler": "ddim"}, "cannot choose 0 of 1000 steps"),
        ({"eta": 1.5, "sampler": "ddim"}, "eta is 1.5"),
        ({"start_t": 1000}, "start_t is 1000: choose a step of the process, 0 to 999"),
        ({"start_t": 4, "steps": 6}, "cannot choose 6 of 5 steps"),
    ],
)
def test_bad_requests_are_refused(wrong: dict[str, Any], message: str, tiny_models: Models) -> None:
    with pytest.raises(UserError, match=message):
        tiny_models("eps").sample(noise("lq", (1, 4, 8, 8)), Guidance(CONTEXT[:1]), Sampling(**{"steps": 2, **wrong}))


def test_guidance_without_and_tiles_with_too_much_are_refused(tiny_models: Models) -> None:
    with pytest.raises(UserError, match="guidance_scale is 7.0: it needs a negative prompt"):
        Guidance(CONTEXT, scale=7.0)
    with pytest.raises(UserError, match="overlap of 8 does not fit tiles of 8"):
        tiny_models("eps").sample(noise("lq", (1, 4, 8, 8)), Guidance(CONTEXT[:1]), Sampling(2), tiling=Tiling(8, 8))


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
@pytest.mark.parametrize("start_t", [None, 300])
def test_one_step_is_taken_where_the_latent_stands(sampler: str, start_t: int | None, tiny_models: Models) -> None:
    # With a U-Net that outputs the noise that is there, one step from the noised LQ latent must lead back to it.
    model, z_lq, told = tiny_models("eps"), noise("lq", (1, 4, SIDE, SIDE)), []

    def true_noise(_module: object, given: tuple[Tensor, ...], _output: Tensor) -> Tensor:
        told.append(int(given[1][0]))
        return noise("start0", z_lq.shape)

    hook = model.model.diffusion_model.register_forward_hook(true_noise)
    settings = Sampling(1, sampler, start_t=start_t)
    z = model.sample(z_lq, Guidance(CONTEXT[:1]), settings, noise=draws("start"))
    hook.remove()
    assert told == [999 if start_t is None else start_t]
    abar = 1.0 if sampler == "ddpm" else 1 - BETAS[0]  # the published DDIM ends at step 0, not before it
    want = np.sqrt(abar) * z_lq + np.sqrt(1 - abar) * noise("start0", z_lq.shape)
    assert relative_error(z, want) < 1e-4


def test_a_model_trained_on_few_steps_samples_on_the_whole_process() -> None:
    z_lq, x = noise("lq", (1, 4, 8, 8)), noise("xT", (1, 4, 8, 8))
    context = noise("ctx", (1, 7, 32))
    few, all_of_them = (stage1(time_replace=count).eval() for count in (10, None))
    assert torch.equal(
        few.sample(z_lq, Guidance(context), Sampling(4), x_T=x, noise=draws("step")),
        all_of_them.sample(z_lq, Guidance(context), Sampling(4), x_T=x, noise=draws("step")),
    )


def test_sampling_from_an_intermediate_step_takes_the_steps_below_it(tiny_models: Models) -> None:
    z_lq, seen = noise("lq", (1, 4, SIDE, SIDE)), []
    model = tiny_models("eps")
    hook = model.model.diffusion_model.register_forward_pre_hook(lambda _module, given: seen.append(given[:2]))
    model.sample(z_lq, Guidance(CONTEXT[:1]), Sampling(3, start_t=300), noise=draws("start"))
    hook.remove()
    assert [int(t) for _, t in seen] == [300, 150, 0]
    abar = np.cumprod(1 - BETAS)[300]
    start = np.sqrt(abar) * z_lq + np.sqrt(1 - abar) * noise("start0", z_lq.shape)
    assert relative_error(seen[0][0], start) < 1e-5
    x_0 = noise("x", z_lq.shape)
    z = sample_ddpm(
        oracle("eps", x_0, []),
        start,
        truncated(BETAS, 300),
        Sampling(3),
        parameterization="eps",
        noise=draws("step"),
    )
    assert relative_error(z, x_0) < 2e-3


def test_each_picture_draws_noise_of_its_own() -> None:
    def generators(*seeds: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    together = noise_of_pictures(generators(1, 2), "cpu")
    alone = noise_of_pictures(generators(2), "cpu")
    for shape in ((4, 3, 3), (4, 2, 5)):
        assert torch.equal(together(torch.Size((2, *shape)))[1:], alone(torch.Size((1, *shape))))


def test_tiles_in_batches_are_the_tiles_one_by_one(tiny_models: Models) -> None:
    z_lq = noise("lq", (2, 4, 8, 24))
    results = [
        tiny_models("v").sample(
            z_lq,
            Guidance(CONTEXT, UNCOND, 3.0),
            Sampling(2),
            noise=draws("step"),
            tiling=Tiling(8, overlap=0, batch=tile_batch),
        )
        for tile_batch in (1, 2, 8)
    ]
    assert relative_error(results[1], results[0]) < 1e-5
    assert relative_error(results[2], results[0]) < 1e-5
