from collections.abc import Callable

import numpy as np
import pytest
import torch
from reference.models import gradients, latents, losses, pair, stage1
from reference.parity import noise, relative_error
from torch import Tensor

from basicsr.utils.errors import UserError
from ldm.models.diffusion.process import Process
from ldm.models.diffusion.schedule import Schedule, make_betas, respace, space_timesteps

BETAS = make_betas(1000, 0.00085, 0.0120)
KINDS = ("eps", "x0", "v")
Arrays = Callable[[str], dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def schedule() -> Schedule:
    return Schedule.from_betas(BETAS)


def test_the_trained_schedule_is_the_published_one(arrays: Arrays) -> None:
    reference, schedule = arrays("training_and_sampling"), Schedule.from_betas(respace(BETAS, list(range(1000))))
    stored = [name for name in reference if name.startswith("schedule_")]
    assert len(stored) == 7
    for name in stored:
        values = getattr(schedule, name.removeprefix("schedule_"))
        assert values.dtype == torch.float32
        assert relative_error(values, reference[name]) < 1e-6
    for kind in KINDS:
        assert (
            relative_error(Process(schedule, torch.arange(1000), kind).vlb_weights(), reference[f"lvlb_weights_{kind}"])
            < 1e-5
        )


def test_the_posterior_is_bayes_rule(schedule: Schedule) -> None:
    # q(x_{t-1} | x_t, x_0) is proportional to q(x_t | x_{t-1}) q(x_{t-1} | x_0): multiply the two Gaussians.
    abar, alpha = np.cumprod(1 - BETAS), 1 - BETAS
    for t in (1, 500, 999):
        precision = alpha[t] / BETAS[t] + 1 / (1 - abar[t - 1])
        assert float(schedule.posterior_variance[t]) == pytest.approx(1 / precision, rel=1e-5)
        x_0, x_t = 0.7, -1.3
        mean = (np.sqrt(alpha[t]) / BETAS[t] * x_t + np.sqrt(abar[t - 1]) / (1 - abar[t - 1]) * x_0) / precision
        got = schedule.posterior_mean(torch.full((1, 1), x_0), x_t=torch.full((1, 1), x_t), t=torch.tensor([t]))
        assert float(got) == pytest.approx(mean, rel=1e-5)
    assert torch.isfinite(schedule.posterior_log_variance_clipped).all()


def test_noising_is_the_closed_form_per_sample(schedule: Schedule) -> None:
    x_start, eps, t = noise("x", (3, 4, 2, 2)), noise("e", (3, 4, 2, 2)), torch.tensor([0, 400, 999])
    abar = torch.from_numpy(np.cumprod(1 - BETAS))[t].view(3, 1, 1, 1)
    assert (
        relative_error(schedule.q_sample(x_start, t=t, noise=eps), abar.sqrt() * x_start + (1 - abar).sqrt() * eps)
        < 1e-6
    )


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 20, 50, 200, 999, 1000])
def test_chosen_steps_are_the_published_ones(count: int, arrays: Arrays) -> None:
    assert space_timesteps(1000, count) == arrays("training_and_sampling")[f"space_{count}"].tolist()


@pytest.mark.parametrize("count", [2, 3, 17, 250, 333, 998])
def test_chosen_steps_rise_evenly_from_the_first_to_the_last(count: int) -> None:
    steps = space_timesteps(1000, count)
    assert (len(steps), steps[0], steps[-1]) == (count, 0, 999)
    assert set(np.diff(steps)) <= {int(999 / (count - 1)), int(999 / (count - 1)) + 1}


@pytest.mark.parametrize("count", [0, -3, 1001])
def test_a_step_count_out_of_range_is_refused(count: int) -> None:
    with pytest.raises(UserError, match=f"cannot choose {count} of 1000 steps"):
        space_timesteps(1000, count)


def test_respacing_keeps_the_noise_levels(schedule: Schedule) -> None:
    kept = space_timesteps(1000, 7)
    respaced = Schedule.from_betas(respace(BETAS, kept))
    assert relative_error(respaced.alphas_cumprod, schedule.alphas_cumprod[kept]) < 1e-5


def test_training_on_fewer_steps_tells_the_networks_the_original_ones() -> None:
    model = stage1(time_replace=250).eval()
    assert all(len(getattr(model, name)) == 250 for name in [*Schedule.names(), "lvlb_weights"])
    assert model.original_timesteps.tolist() == space_timesteps(1000, 250)
    told = []
    for network in (model.model.diffusion_model, model.structcond_stage_model):
        network.register_forward_pre_hook(lambda _module, given: told.append(given[1]))
    rng = torch.Generator().manual_seed(1)
    model._step(pair(), rng)
    expected = torch.Generator().manual_seed(1)
    model.encode(pair(), expected)
    t = torch.randint(250, (2,), generator=expected)
    assert len(told) == 2
    assert all(steps.tolist() == [model.original_timesteps[i] for i in t] for steps in told)


def test_a_look_at_a_prediction_tells_the_original_step_too() -> None:
    model, told = stage1(time_replace=250).eval(), []
    for network in (model.model.diffusion_model, model.structcond_stage_model):
        network.register_forward_pre_hook(lambda _module, given: told.append(given[1].tolist()))
    rng = torch.Generator().manual_seed(1)
    model.predict_x0(model.encode(pair(), rng), 100, rng)
    assert told == [[space_timesteps(1000, 250)[100]] * 2] * 2


def test_the_networks_are_told_what_the_caller_calls_a_step() -> None:
    model, told, given = stage1(), [], latents()
    model.model.diffusion_model.register_forward_pre_hook(lambda _module, args: told.append(args[1].tolist()))
    t, t_ori = torch.tensor([1, 2]), torch.tensor([300, 700])
    structure = model.structcond_stage_model(given.pop("z_lq"), t_ori)
    model.p_losses(struct_cond=structure, t=t, t_ori=t_ori, **given)
    assert told == [[300, 700]]


def test_a_process_of_one_step_is_trained_at_the_last_one() -> None:
    model = stage1(time_replace=1)
    assert model.original_timesteps.tolist() == [999]
    loss, parts = losses(model, torch.tensor([0, 0]))
    loss.backward()
    assert loss.isfinite() and all(gradient.isfinite().all() for gradient in gradients(model))
    assert float(parts["train/loss_vlb"]) == 0
    with pytest.raises(UserError, match="time_replace"):
        stage1(time_replace=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_perfect_output_gives_back_latent_and_noise(kind: str, schedule: Schedule) -> None:
    x_start, eps, t = noise("x", (4, 4, 3, 3)), noise("e", (4, 4, 3, 3)), torch.tensor([0, 300, 700, 999])
    process = Process(schedule, torch.arange(1000), kind)
    n = process.noised(x_start, t=t, noise=eps)
    output = process.target(n)
    # At t = 0 the noise is a hundredth of the latent, and at 999 the latent a fifteenth of the noise.
    assert relative_error(process.x0(output, n), x_start) < 2e-5
    assert relative_error(process.eps(output, n), eps) < 2e-5


def test_targets_are_noise_latent_and_velocity(schedule: Schedule) -> None:
    x_start, eps, t = noise("x", (1, 4, 3, 3)), noise("e", (1, 4, 3, 3)), torch.tensor([600])
    abar = np.cumprod(1 - BETAS)[600]

    def target(kind: str) -> Tensor:
        process = Process(schedule, torch.arange(1000), kind)
        return process.target(process.noised(x_start, t=t, noise=eps))

    assert target("eps") is eps
    assert target("x0") is x_start
    velocity = target("v")
    assert relative_error(velocity, np.sqrt(abar) * eps - np.sqrt(1 - abar) * x_start) < 1e-6


def test_an_unknown_parameterization_is_refused() -> None:
    with pytest.raises(UserError, match="parameterization is 'epsilon'; choose eps"):
        stage1(parameterization="epsilon")
