"""The edge loss's discriminator: whose gradient goes where, a run with it that is stopped, what leaves it behind."""

from pathlib import Path
from typing import Any

import pytest
import torch
from reference.models import gradients, losses, pair, stage1
from safetensors.torch import load_file
from tiny_run import write_tiny_model, write_tiny_run
from torch import Tensor
from torch.nn.functional import interpolate, softplus

from basicsr.utils.errors import FieldError
from ldm.config import load_config
from ldm.entry import main as stablesr_edge
from ldm.exchange.export_cli import main as export
from ldm.inference import cli as upscaling
from ldm.models.build import build_model
from ldm.modules.losses.edge_adversarial import AdversarialError
from ldm.modules.losses.edge_loss import EdgeLoss
from ldm.modules.losses.edge_options import EdgeOptions
from ldm.training.cli import main

T = torch.tensor([150, 700])
ADVERSARIAL = "model.params.edge_loss_type=adversarial"


def pictures() -> tuple[Tensor, Tensor]:
    """A soft step and a hard one, (2, 3, 32, 32) in [-1, 1]."""
    ramp = torch.linspace(-1, 1, 32).expand(2, 3, 32, 32)
    return ramp.clone(), ramp.sign()


def test_both_losses_are_their_formulas_and_each_moves_its_own() -> None:
    torch.manual_seed(0)
    loss = EdgeLoss(options=EdgeOptions(loss_type="adversarial"))
    assert isinstance(loss.error, AdversarialError)
    network = loss.error.discriminator
    network.eval()  # BatchNorm's running values, so that the pictures of a batch do not meet
    pred, gt = pictures()
    pred.requires_grad_()
    terms = loss(pred, gt)
    assert terms.discriminator is not None
    weights = loss.weight_map(loss.edges(gt))
    fake, real = (interpolate(network(each), 32, mode="nearest") for each in (pred, gt))
    torch.testing.assert_close(terms.loss, (softplus(-fake) * weights).mean())
    torch.testing.assert_close(terms.discriminator, ((softplus(-real) + softplus(fake)) * weights).mean())
    (wanted,) = torch.autograd.grad((softplus(-fake) * weights).mean(), pred, retain_graph=True)
    terms.loss.backward(retain_graph=True)
    torch.testing.assert_close(pred.grad, wanted)
    assert float(wanted.abs().max()) > 0 and all(p.grad is None for p in network.parameters())
    pred.grad = None
    terms.discriminator.backward()
    assert pred.grad is None and all(gradient.abs().max() > 0 for gradient in gradients(network) if gradient.ndim > 1)


def test_it_learns_to_tell_soft_edges_from_hard_ones() -> None:
    torch.manual_seed(0)
    loss = EdgeLoss(options=EdgeOptions(loss_type="adversarial"))
    assert loss.discriminator is not None
    optimizer = torch.optim.AdamW(loss.discriminator.parameters(), 1e-3)
    history = []
    for _ in range(20):
        terms = loss(*pictures())
        assert terms.discriminator is not None
        optimizer.zero_grad()
        terms.discriminator.backward()
        optimizer.step()
        history.append((float(terms.discriminator.detach()), float(terms.loss)))
    assert history[-1][0] < 0.2 * history[0][0]  # it tells them apart,
    assert history[-1][1] > 2 * history[0][1]  # and what it can tell pays


@pytest.mark.parametrize("weight", [0.5, "auto:0.3"])
def test_a_step_moves_the_discriminator_as_its_own_loss_says(weight: float | str) -> None:
    torch.manual_seed(0)
    model = stage1(parameterization="v", edge_loss_weight=weight, edge_loss_type="adversarial")
    total, parts = losses(model, T)
    parts = {name.removeprefix("train/"): value for name, value in parts.items()}
    torch.testing.assert_close(parts["loss"], parts["loss_simple"] + parts["edge_weight"] * parts["loss_edge"])
    torch.testing.assert_close(total.detach(), parts["loss"] + parts["loss_discriminator"])
    total.backward()
    assert all(gradient.isfinite().all() for gradient in gradients(model))
    network = model.edge_discriminator
    assert network is not None
    moved = [gradient.clone() for gradient in gradients(network)]
    strong = stage1(parameterization="v", edge_loss_weight=5.0, edge_loss_type="adversarial")
    strong.load_state_dict(model.state_dict())
    losses(strong, T)[0].backward()
    assert strong.edge_discriminator is not None
    for one, other in zip(moved, gradients(strong.edge_discriminator), strict=True):  # whatever the weight is
        torch.testing.assert_close(one, other)
    assert any(float(gradient.abs().max()) > 0 for gradient in moved)


@torch.no_grad()
def test_looking_changes_nothing_and_measures_what_does_not_learn() -> None:
    model = stage1(parameterization="v", edge_loss_weight=0.5, edge_loss_type="adversarial")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert model.edge_loss(*pictures()).discriminator is None
    measured = model.edge_probe(pair())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    plain = stage1(parameterization="v", edge_loss_weight=0.5)
    plain.load_state_dict({name: value for name, value in before.items() if name in plain.state_dict()})
    assert measured == plain.edge_probe(pair())


def test_what_is_too_small_for_a_patch_is_told() -> None:
    loss = EdgeLoss(options=EdgeOptions(loss_type="adversarial"))
    loss(*(each[..., :12, :12] for each in pictures()))
    with pytest.raises(FieldError, match="12 pixels or more, and these have 11: set a larger edge_crop"):
        loss(*(each[..., :11] for each in pictures()))


def test_no_edge_loss_no_discriminator_and_no_gate_with_it() -> None:
    assert stage1(edge_loss_weight=0, edge_loss_type="adversarial").edge_discriminator is None
    assert stage1(edge_loss_weight=0.5).edge_discriminator is None
    with pytest.raises(FieldError, match="edge_loss_type.*'adversarial'.*leave out edge_max_timestep"):
        EdgeOptions(loss_type="adversarial", max_timestep=100)


def test_a_checkpoint_without_frozen_parts_is_whole_also_without_the_discriminator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tiny_run(tmp_path)
    write_tiny_model(tmp_path)
    monkeypatch.chdir(tmp_path)
    params = ["ckpt_path=model.ckpt", "edge_loss_type=adversarial", "save_trainable_only=true", "unfrozen_diff=false"]
    own = [f"model.params.{word}" for word in params]
    words = ["--base", "tiny.yaml", "--logger", "csv", "lightning.callbacks=null", *own]
    assert main([*words, "-n", "small", "--max_steps", "1"]) == 0
    (run,) = Path("logs").glob("*_small")
    saved = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    config = load_config(["tiny.yaml"], own)
    for left_out in ("nothing", "edge_discriminator."):
        held = {name: value for name, value in saved.items() if not name.startswith(left_out)}
        torch.save({"state_dict": held}, "trained.ckpt")
        state = build_model(config, ckpt="trained.ckpt").state_dict()
        assert all(torch.equal(state[name], value) for name, value in held.items() if name in state)
        assert sum(name in state for name in held) == len(held) - 1  # all but the digest of what is frozen
    capsys.readouterr()
    assert main([*words, "--check", "lightning.trainer.strategy=fsdp"]) == 2
    assert "is fsdp, which cannot split edge_loss_type adversarial's discriminator: use ddp" in capsys.readouterr().out


def test_a_run_with_it_goes_on_and_its_weights_serve_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tiny_run(tmp_path)
    write_tiny_model(tmp_path)
    monkeypatch.chdir(tmp_path)
    words: list[Any] = ["--base", "tiny.yaml", "--logger", "csv", "model.params.ckpt_path=model.ckpt", ADVERSARIAL,
                        "model.params.edge_loss_weight=auto:0.3", "lightning.callbacks=null"]  # fmt: skip
    assert main([*words, "-n", "straight", "--max_steps", "3"]) == 0
    assert main([*words, "-n", "stopped", "--max_steps", "1"]) == 0
    straight, stopped = (next(iter(Path("logs").glob(f"*_{name}"))) for name in ("straight", "stopped"))
    assert main(["--resume", str(stopped), "--max_steps", "3"]) == 0
    one, other = (
        torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for run in (straight, stopped)
    )
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    own = [key for key in one if key.startswith("edge_discriminator.")]
    assert own and "loss_discriminator" in (straight / "metrics.csv").read_text().splitlines()[0]
    capsys.readouterr()
    assert stablesr_edge(["inspect", str(straight / "checkpoints/last.ckpt")]) == 0
    assert "discriminator" in capsys.readouterr().out
    picture = ["--input", "pictures/0.png", "--steps", "1", "--upscale", "1"]
    assert upscaling.main(["--ckpt", str(straight / "checkpoints/last.ckpt"), *picture]) == 0
    assert export([str(straight / "checkpoints/last.ckpt"), "out.safetensors"]) == 0
    assert not set(own) & load_file("out.safetensors").keys()
    assert main([*words, "-n", "next", "--max_steps", "1", "model.params.ckpt_path=out.safetensors"]) == 0
