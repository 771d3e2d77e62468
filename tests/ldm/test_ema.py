from pathlib import Path

import pytest
import torch
from reference.models import Pairs, stage1, trainer
from reference.parity import fill, relative_error
from safetensors.torch import save_file
from torch import nn

from ldm.modules.ema import LitEma


@pytest.fixture
def model() -> nn.Module:
    layers = fill(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)))
    layers[1].requires_grad_(False)
    return layers


def test_keys_are_those_of_published_checkpoints(model: nn.Module) -> None:
    ema = LitEma(model)
    assert set(ema.state_dict()) == {"decay", "num_updates", "0weight", "0bias"}  # dots out, frozen parts not there
    assert float(ema.decay) == pytest.approx(0.9999)
    assert ema.num_updates.dtype == torch.int


def test_the_average_is_the_closed_form(model: nn.Module) -> None:
    ema, want = LitEma(model), model[0].weight.detach().clone()
    for update in range(1, 6):
        with torch.no_grad():
            model[0].weight.add_(update)
        ema.update(model)
        decay = (1 + update) / (10 + update)
        want = decay * want + (1 - decay) * model[0].weight.detach()
        assert relative_error(ema.get_buffer("0weight"), want) < 1e-6
    assert int(ema.num_updates) == 5


def test_the_decay_ends_its_warm_up(model: nn.Module) -> None:
    ema = LitEma(model, decay=0.5)
    ema.num_updates.fill_(100)
    before = model[0].bias.detach().clone()
    with torch.no_grad():
        model[0].bias.add_(1.0)
    ema.update(model)
    assert relative_error(ema.get_buffer("0bias"), before + 0.5) < 1e-6


def test_the_averaged_weights_are_lent_and_given_back(model: nn.Module) -> None:
    ema, average, frozen = LitEma(model), model[0].weight.detach().clone(), model[1].weight.detach().clone()
    with torch.no_grad():
        model[0].weight.add_(1.0)
    trained, parameter = model[0].weight.detach().clone(), model[0].weight
    with pytest.raises(ZeroDivisionError), ema.applied_to(model):
        assert torch.equal(model[0].weight, average)
        assert model[0].weight is parameter  # the optimiser's own
        assert torch.equal(model[1].weight, frozen)
        raise ZeroDivisionError
    assert torch.equal(model[0].weight, trained)
    assert torch.equal(ema.get_buffer("0weight"), average)


def test_it_follows_optimiser_steps_not_batches(tmp_path: Path) -> None:
    model = stage1(use_ema=True, learning_rate=1e-3)
    name = next(name for name, p in model.model.named_parameters() if p.requires_grad)
    start = model.model.get_parameter(name).detach().clone()
    run = trainer(tmp_path, 2, accumulate_grad_batches=2)
    run.fit(model, Pairs(4))
    assert (run.global_step, int(model.model_ema.num_updates)) == (2, 2)
    shadow, now = model.model_ema.get_buffer(name.replace(".", "")), model.model.get_parameter(name).detach()
    assert not torch.equal(now, start)
    assert 0 < relative_error(shadow, now) < relative_error(start, now)
    run.save_checkpoint(tmp_path / "last.ckpt")
    resumed = stage1(use_ema=True, filled=False)
    run = trainer(tmp_path, 3, accumulate_grad_batches=2)
    run.fit(resumed, Pairs(4), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert int(resumed.model_ema.num_updates) == 3


def test_a_start_without_an_average_begins_it_at_the_loaded_weights(tmp_path: Path) -> None:
    source = stage1()
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    model = stage1(use_ema=True, filled=False, ckpt_path=str(tmp_path / "weights.safetensors"))
    for name, parameter in source.model.named_parameters():
        if parameter.requires_grad:
            assert torch.equal(model.model_ema.get_buffer(name.replace(".", "")), parameter)
    save_file(model.state_dict(), tmp_path / "averaged.safetensors")
    again = stage1(use_ema=True, filled=False, ckpt_path=str(tmp_path / "averaged.safetensors"))
    assert set(again.model_ema.state_dict()) == set(model.model_ema.state_dict())
