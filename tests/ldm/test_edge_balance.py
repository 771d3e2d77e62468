"""How strongly the edge loss counts: automatic weight, warm-up, measured ratio, and agreement of several processes."""

import socket
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.callbacks import Callback
from reference.models import Pairs, gradients, losses, stage1, trainer
from reference.parity import relative_error
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from ldm.models.diffusion.ddpm import LatentDiffusionSRTextWT
from ldm.modules.losses.edge_balance import LOWEST, GradientBalance

T = torch.tensor([150, 700])


def output_gradient(**params: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """The gradient at the U-Net's output and what is logged."""
    model = stage1(parameterization="v", **params)
    kept: list[Tensor] = []

    model.model.diffusion_model.register_forward_hook(lambda _module, _given, output: kept.append(output))
    loss, parts = losses(model, T)
    return torch.autograd.grad(loss, kept[0])[0], parts


@pytest.mark.parametrize("more", [{}, {"edge_decoder_checkpoint": True}, {"edge_crop": 4, "edge_max_timestep": 400}])
def test_the_automatic_weight_brings_the_edge_gradient_to_its_fraction(more: dict[str, Any]) -> None:
    plain, _ = output_gradient()
    both, parts = output_gradient(edge_loss_weight="auto:0.2", **more)
    weight = float(parts["train/edge_weight"])
    if "edge_crop" not in more:  # which draws
        fixed, fixed_parts = output_gradient(edge_loss_weight=weight, **more)
        assert relative_error(both, fixed) < 1e-5
        assert relative_error(parts["train/loss"], fixed_parts["train/loss"]) < 1e-5
    assert float((both - plain).norm() / plain.norm()) == pytest.approx(0.2, rel=1e-4)
    assert float(parts["train/edge_grad_ratio"]) == pytest.approx(0.2, rel=1e-4)


def test_the_ratio_is_measured_by_default_and_changes_no_bit() -> None:
    plain, parts = output_gradient(edge_loss_weight=0.3, edge_grad_ratio_every=0)
    measured, measured_parts = output_gradient(edge_loss_weight=0.3)
    main, _ = output_gradient()
    ratio = float((plain - main).norm() / main.norm())
    assert float(measured_parts.pop("train/edge_grad_ratio")) == pytest.approx(ratio, rel=1e-4)
    assert torch.equal(measured, plain)
    assert measured_parts == parts


@pytest.mark.parametrize("more", [{}, {"edge_decoder_checkpoint": True, "edge_crop": 4}])
def test_a_run_that_measures_the_ratio_ends_in_the_same_weights(tmp_path: Path, more: dict[str, Any]) -> None:
    def trained(every: int) -> dict[str, Tensor]:
        torch.manual_seed(5)
        model = stage1(edge_loss_weight=0.3, edge_grad_ratio_every=every, learning_rate=1e-3, **more)
        trainer(tmp_path, 4, accumulate_grad_batches=2).fit(model, Pairs(8))
        assert (model.edge_term.measured is not None) == bool(every)
        return model.state_dict() | {"stream": torch.rand(1)}

    with_ratio, without = trained(1), trained(0)
    assert all(torch.equal(value, without[key]) for key, value in with_ratio.items())


def test_batches_that_share_a_step_are_measured_once(tmp_path: Path) -> None:
    walks: list[int] = []
    model = stage1(edge_loss_weight=0.3, edge_grad_ratio_every=2)
    model.first_stage_model.decoder.conv_out.register_full_backward_hook(lambda *_: walks.append(1))
    trainer(tmp_path, 4, accumulate_grad_batches=2).fit(model, Pairs(8))
    assert len(walks) == 8 + 3  # at steps 0, 1 and 3


def test_a_step_that_measures_walks_the_decoder_backward_once() -> None:
    model, walks = stage1(edge_loss_weight="auto:0.2"), []
    hook = model.first_stage_model.decoder.conv_out.register_full_backward_hook(lambda *_: walks.append(1))
    loss, _ = losses(model, T)
    loss.backward()
    hook.remove()
    assert len(walks) == 1


def test_recomputing_the_decoder_keeps_fewer_activations() -> None:
    def kept(**params: Any) -> int:
        """Numbers that the graph of a step holds on to."""
        model, shapes = stage1(edge_loss_weight=0.5, unfrozen_diff=False, **params), []

        def pack(tensor: Tensor) -> Tensor:
            shapes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model.differentiable_decode_first_stage(torch.zeros(1, 4, 8, 8, requires_grad=True))
        return sum(shapes)

    assert kept(edge={"decoder_checkpoint": True}) < kept() / 2  # of the two finest levels


def test_mixed_precision_keeps_the_automatic_weight() -> None:
    _, exact = losses(stage1(edge_loss_weight="auto:0.2"), T)
    model = stage1(edge_loss_weight="auto:0.2", edge_loss_type="charbonnier", edge_operator="sobel")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, parts = losses(model, T)
        _, half = losses(stage1(edge_loss_weight="auto:0.2"), T)
    assert loss.dtype == parts["train/loss_edge"].dtype == torch.float32
    assert relative_error(half["train/edge_weight"], exact["train/edge_weight"]) < 0.1
    loss.backward()
    assert all(torch.isfinite(gradient).all() for gradient in gradients(model))


def test_the_balance_averages_logarithms_within_bounds() -> None:
    balance = GradientBalance(0.5)
    assert balance.weight == 1
    balance.update(1.0, 1.0)
    assert balance.weight == pytest.approx(0.5)
    balance.update(16.0, 1.0)  # wants 8; half-way between 0.5 and 8 is 2
    assert balance.weight == pytest.approx(2)
    for norms in ((float("nan"), 1.0), (1.0, float("inf")), (1.0, 0.0), (0.0, 1.0)):
        balance.update(*norms)
    assert balance.weight == pytest.approx(2)
    for _ in range(3000):
        balance.update(1.0, 1e30)
    assert balance.weight == pytest.approx(LOWEST, rel=1e-6)


def balance(model: LatentDiffusionSRTextWT) -> dict[str, Any]:
    """The state of the automatic weight."""
    assert model.edge_term.balance is not None
    return model.edge_term.balance.state_dict()


def test_the_automatic_weight_reaches_its_fraction_and_survives_a_resume(tmp_path: Path) -> None:
    params: dict[str, Any] = {"edge_loss_weight": "auto:0.2", "edge_warmup_steps": 2, "parameterization": "v"}
    straight, parted, resumed = (stage1(**params) for _ in range(3))
    torch.manual_seed(5)
    run = trainer(tmp_path, 6)
    run.fit(straight, Pairs(6))
    assert float(run.logged_metrics["train/edge_grad_ratio"]) == pytest.approx(0.2, rel=0.5)
    assert run.logged_metrics["train/edge_weight"] == pytest.approx(straight.edge_term.weight)
    torch.manual_seed(5)
    first = trainer(tmp_path, 3)
    first.fit(parted, Pairs(6))
    first.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["edge_balance"]["updates"] == 3 and not any("balance" in key for key in saved["state_dict"])
    resumed.on_load_checkpoint(saved)
    assert balance(resumed) == balance(parted) != GradientBalance(0.2).state_dict()
    trainer(tmp_path, 3).fit(resumed, Pairs(6), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert balance(resumed) == balance(parted)


def test_the_weight_warms_up_with_the_steps(tmp_path: Path) -> None:
    class Watch(Callback):
        weights: list[float] = []

        def on_train_batch_end(self, run: pl.Trainer, *_: object) -> None:
            self.weights.append(float(run.callback_metrics["train/edge_weight"]))

    trainer(tmp_path, 5, callbacks=[Watch()]).fit(stage1(edge_loss_weight=0.4, edge_warmup_steps=4), Pairs(5))
    assert Watch.weights == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4])


# Several processes


class Step(nn.Module):
    """A training step as DistributedDataParallel wants it: the forward pass of a module."""

    def __init__(self, model: LatentDiffusionSRTextWT) -> None:
        super().__init__()
        self.model = model

    def forward(self, t: Tensor) -> Tensor:
        return losses(self.model, t)[0]


def one_of_two(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    for weight in (0.5, "auto:0.2"):
        model = stage1(edge_loss_weight=weight, edge_max_timestep=400)
        model.cond_stage_model = None
        wrapped = nn.parallel.DistributedDataParallel(Step(model))
        for _ in range(2):
            wrapped(torch.tensor([900, 950]) if rank == 0 else T).backward()
        balance = None if model.edge_term.balance is None else model.edge_term.balance.state_dict()
        torch.save({"gradients": gradients(model), "balance": balance}, f"{folder}/{weight}_{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_agree_though_one_has_no_active_sample(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = spawn(one_of_two, (port, str(tmp_path)), nprocs=2, join=False)
    for _ in range(2):  # one call may return when the first process has ended
        processes.join(timeout=90)
    if any(process.is_alive() for process in processes.processes):
        for process in processes.processes:
            process.kill()
        pytest.fail("the two processes wait for each other")
    for weight in (0.5, "auto:0.2"):
        first, second = (torch.load(tmp_path / f"{weight}_{rank}.pt", weights_only=True) for rank in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first["gradients"], second["gradients"], strict=True))
        assert any(gradient.abs().max() > 0 for gradient in first["gradients"])
        assert first["balance"] == second["balance"]
        assert (first["balance"] or {}).get("updates") == (None if weight == 0.5 else 2)
