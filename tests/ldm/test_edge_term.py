"""The edge loss's options within a real training step: gates, windows, targets, automatic weight, several processes."""

import socket
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from pytorch_lightning.callbacks import Callback
from reference.models import Pairs, latents, losses, pair, stage1, trainer
from reference.parity import noise, relative_error
from torch import Tensor, nn

from basicsr.utils.errors import UserError
from basicsr.utils.rng import torch_rng
from ldm.models.diffusion import objective
from ldm.models.diffusion.ddpm import LatentDiffusionSRTextWT
from ldm.modules.losses.edge_balance import LOWEST, GradientBalance
from ldm.modules.losses.edge_windows import FLOOR, Windows, draw_by_edges, draw_uniform

T = torch.tensor([150, 700])
CELLS, F = 8, 2  # the small model's latents and pixels per cell


def step(t: Tensor = T, gt_pm1: Tensor | None = None, **params: Any) -> tuple[LatentDiffusionSRTextWT, Tensor, dict]:
    """`p_losses` of a model with these options on the named inputs, all windows drawn from one stream."""
    model = stage1(**{"parameterization": "v", "edge_loss_weight": 0.5, **params})
    given = latents()
    structure = model.structcond_stage_model(given.pop("z_lq"), t)
    rng = torch_rng("cpu", "windows")
    loss, parts = model.p_losses(struct_cond=structure, t=t, t_ori=t, gt_pm1=gt_pm1, rng=rng, **given)
    return model, loss, {name.removeprefix("train/"): value for name, value in parts.items()}


@torch.no_grad()
def predicted(model: LatentDiffusionSRTextWT, t: Tensor = T) -> Tensor:
    """The clean latents that the model predicts from the named inputs."""
    given = latents()
    structure = model.structcond_stage_model(given["z_lq"], t)
    x_t = model.schedule.q_sample(given["x_start"], t, given["noise"])
    output = model.model.diffusion_model(x_t, t, given["cond"], structure)
    return objective.x0_from_output("v", model.schedule, output, x_t, t)


def by_hand(model: LatentDiffusionSRTextWT, z_pred: Tensor, truth_pm1: Tensor) -> Tensor:
    with torch.no_grad():
        return model.edge_loss(model.decode(z_pred), truth_pm1).loss


def decodes(model: LatentDiffusionSRTextWT, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of what is decoded from here on."""
    shapes: list[tuple[int, ...]] = []
    decode = model.first_stage_model.decode
    monkeypatch.setattr(model.first_stage_model, "decode", lambda z: shapes.append(tuple(z.shape)) or decode(z))
    return shapes


# When


@pytest.mark.parametrize("gate", [{"edge_max_timestep": 150}, {"edge_min_snr": 1.0},
                                  {"edge_max_timestep": 999, "edge_min_snr": 1.0}])  # fmt: skip
def test_only_samples_that_pass_are_decoded_and_averaged(gate: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    model, loss, parts = step(**gate)
    first = slice(0, 1)
    truth = model.decode(latents()["x_start"][first])
    want = by_hand(model, predicted(model)[first], truth)
    assert relative_error(parts["loss_edge"], want) < 1e-5
    assert parts["edge_active"] == 0.5
    assert relative_error(loss, step(edge_loss_weight=0.0)[1] + 0.5 * want) < 1e-5
    shapes = decodes(model, monkeypatch)
    losses(model, T)
    assert shapes == [(1, 4, CELLS, CELLS)] * 2


def test_the_snr_is_that_of_the_timestep() -> None:
    abar = stage1(filled=False).alphas_cumprod
    snr = (abar / (1 - abar))[T]
    for bound, active in ((float(snr[1]) * 0.99, 1.0), (float(snr[1]) * 1.01, 0.5), (float(snr[0]) * 1.01, 0.0)):
        assert step(edge_min_snr=bound)[2]["edge_active"] == active


def test_the_gate_asks_for_the_original_timestep() -> None:
    model = stage1(edge_loss_weight=0.5, time_replace=100, edge_max_timestep=200)
    t = torch.tensor([10, 60])
    t_original = model.original_timesteps[t]
    assert t_original[0] < 200 < t_original[1]
    given = latents()
    structure = model.structcond_stage_model(given.pop("z_lq"), t_original)
    _, parts = model.p_losses(struct_cond=structure, t=t, t_ori=t_original, **given)
    assert parts["train/edge_active"] == 0.5 and "train/loss_edge_t0" in parts and "train/loss_edge_t2" not in parts


@pytest.mark.parametrize("weight", [0.5, "auto:0.2"])
def test_without_an_active_sample_nothing_is_decoded_and_the_gradient_is_the_main_loss(
    weight: float | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gradients(**params: Any) -> list[Tensor]:
        model = stage1(parameterization="v", **params)
        shapes = decodes(model, monkeypatch)
        loss, parts = losses(model, T)
        assert not shapes and not any(name.startswith("train/loss_edge") for name in parts)
        assert params.get("edge_loss_weight", 0) == 0 or parts["train/edge_active"] == 0
        loss.backward()
        return [loss.detach(), *(p.grad for p in model.parameters() if p.requires_grad)]

    plain, gated = gradients(), gradients(edge_loss_weight=weight, edge_max_timestep=100)
    assert all(relative_error(a, b) < 1e-5 for a, b in zip(gated, plain, strict=True))


def test_the_empty_loss_stays_0_where_the_output_overflows() -> None:
    model = stage1(edge_loss_weight=0.5, l_simple_weight=0.0, edge_max_timestep=0)
    (hook,) = [model.model.diffusion_model.register_forward_hook(lambda _m, _given, output: output * float("inf"))]
    _, parts = losses(model, T)
    hook.remove()
    assert parts["train/edge_active"] == 0 and "train/edge_share" not in parts


@pytest.mark.parametrize(("t", "quarters"), [([0, 249], "0"), ([250, 999], "13"), ([500, 500], "2")])
def test_losses_are_logged_by_quarter_of_the_process(t: list[int], quarters: str) -> None:
    _, loss, parts = step(torch.tensor(t))
    found = {name: value for name, value in parts.items() if name.startswith("loss_edge_t")}
    assert set(found) == {f"loss_edge_t{quarter}" for quarter in quarters}
    assert relative_error(torch.stack(list(found.values())).mean(), parts["loss_edge"]) < 1e-5
    assert relative_error(parts["edge_share"], 0.5 * parts["loss_edge"] / loss) < 1e-5


# Where


def test_windows_are_cut_alike_from_both_and_decoded_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _, parts = step(edge_crop=3)
    windows = draw_uniform(latents()["x_start"], 3, torch_rng("cpu", "windows"))
    with torch.no_grad():
        truth = model.decode(windows.cut(latents()["x_start"]))
    assert relative_error(parts["loss_edge"], by_hand(model, windows.cut(predicted(model)), truth)) < 1e-5
    shapes = decodes(model, monkeypatch)
    losses(model, T)
    assert shapes == [(2, 4, 3, 3)] * 2


def test_a_window_of_the_whole_frame_is_the_frame() -> None:
    _, loss, parts = step()
    _, cropped, cropped_parts = step(edge_crop=CELLS)
    assert torch.equal(loss, cropped) and torch.equal(parts["loss_edge"], cropped_parts["loss_edge"])


def test_windows_leave_timesteps_and_noise_as_they_were() -> None:
    plain, cropped = (stage1(edge_loss_weight=0.5, **more)._step(pair(), torch_rng("cpu", "test"))[1]
                      for more in ({}, {"edge_crop": 4, "edge_crop_by": "edges", "edge_target": "pixels"}))
    assert torch.equal(plain["train/loss_simple"], cropped["train/loss_simple"])
    assert not torch.equal(plain["train/loss_edge"], cropped["train/loss_edge"])


def test_a_window_larger_than_the_frame_gets_one_line() -> None:
    with pytest.raises(UserError, match="edge_crop is 9 cells and the latents are 8 x 8: give at most 8"):
        step(edge_crop=9)


def picture_with_edges_in_a_corner() -> tuple[Tensor, Tensor]:
    """Latents (1, 4, 8, 8) and edges (1, 1, 16, 16) with something in the lower right corner alone."""
    edges = torch.zeros(1, 1, CELLS * F, CELLS * F)
    edges[..., 12:, 11:] = 1
    return noise("gt", (1, 4, CELLS, CELLS)), edges


def test_windows_follow_edges_and_their_weights_undo_it() -> None:
    z, edges = picture_with_edges_in_a_corner()
    draws, side = 20_000, 3
    windows = draw_by_edges(z.expand(draws, -1, -1, -1), edges.expand(draws, -1, -1, -1), side, torch_rng("cpu", "w"))
    assert windows.importance is not None
    assert float(windows.importance.max()) <= 1 / FLOOR + 1e-5
    count = (CELLS - side + 1) ** 2
    drawn = Counter(windows.corners)
    assert drawn[(5, 5)] > 5 * draws / count  # the corner with the edges
    assert len(drawn) == count  # and yet every window
    # Any loss that depends on the window: its weighted mean is that of uniform windows.
    table = noise("loss", (CELLS - side + 1, CELLS - side + 1)).abs()
    table[5, 5] = 8.0
    values = torch.stack([table[corner] for corner in windows.corners])
    weighted = values * windows.importance
    standard_error = float(weighted.std()) / draws**0.5
    assert abs(float(weighted.mean() - table.mean())) < 4 * standard_error
    assert abs(float(values.mean() - table.mean())) > 40 * standard_error  # without the weights it is not


def test_the_expected_edge_loss_is_that_of_uniform_windows() -> None:
    """Over many draws, with the real decoder: E of weight x loss is the mean over all windows."""
    model = stage1(edge_loss_weight=0.5)
    gt_pm1, z = pair().gt_pm1[:1], noise("z", (1, 4, CELLS, CELLS))
    side, draws = 6, 4_000
    corners = tuple((top, left) for top in range(3) for left in range(3))
    every = Windows(side, corners)
    with torch.no_grad():
        pred = model.decode(every.cut(z.expand(9, -1, -1, -1)))
        loss = model.edge_loss(pred, every.cut(gt_pm1.expand(9, -1, -1, -1), F)).by_sample
        edges = model.edge_loss.edges(gt_pm1).expand(draws, -1, -1, -1)
    windows = draw_by_edges(z.expand(draws, -1, -1, -1), edges, side, torch_rng("cpu", "w"))
    assert windows.importance is not None
    weighted = windows.importance * torch.stack([loss[corners.index(corner)] for corner in windows.corners])
    assert abs(float(weighted.mean() - loss.mean())) < 4 * float(weighted.std()) / draws**0.5


def test_without_edges_all_windows_are_alike() -> None:
    z, edges = picture_with_edges_in_a_corner()
    windows = draw_by_edges(z, torch.zeros_like(edges), 3)
    assert windows.importance is not None and float(windows.importance) == pytest.approx(1)


def test_importance_reaches_the_loss() -> None:
    gt = torch.where(torch.arange(CELLS * F) < 3, -1.0, 1.0).expand(2, 3, CELLS * F, CELLS * F)
    model, _, parts = step(gt_pm1=gt, edge_crop=3, edge_crop_by="edges")
    windows = draw_by_edges(latents()["x_start"], model.edge_loss.edges(gt), 3, torch_rng("cpu", "windows"))
    with torch.no_grad():
        truth = model.decode(windows.cut(latents()["x_start"]))
        pred = model.decode(windows.cut(predicted(model)))
    assert windows.importance is not None and (windows.importance - 1).abs().max() > 0.01
    assert relative_error(parts["loss_edge"], model.edge_loss(pred, truth, windows.importance).loss) < 1e-5


# Against what


def test_pixels_spare_a_decode_and_are_the_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    gt = noise("picture", (2, 3, CELLS * F, CELLS * F)).clamp(-1, 1)
    model, _, parts = step(gt_pm1=gt, edge_target="pixels")
    assert relative_error(parts["loss_edge"], by_hand(model, predicted(model), gt)) < 1e-5
    shapes = decodes(model, monkeypatch)
    model._step(pair(), torch_rng("cpu", "test"))
    assert shapes == [(2, 4, CELLS, CELLS)]


def test_gate_and_window_and_pixels_together() -> None:
    gt = noise("picture", (2, 3, CELLS * F, CELLS * F)).clamp(-1, 1)
    t = T.flip(0)  # the second sample is the active one
    model, _, parts = step(t, gt, edge_target="pixels", edge_crop=3, edge_max_timestep=400)
    windows = draw_uniform(latents()["x_start"][1:], 3, torch_rng("cpu", "windows"))
    want = by_hand(model, windows.cut(predicted(model, t)[1:]), windows.cut(gt[1:], F))
    assert relative_error(parts["loss_edge"], want) < 1e-5 and parts["edge_active"] == 0.5


@pytest.mark.parametrize("params", [{"edge_target": "pixels"}, {"edge_crop": 3, "edge_crop_by": "edges"}])
def test_a_step_without_the_pixels_it_needs_says_so(params: dict) -> None:
    with pytest.raises(UserError, match=r"model.params.edge_(target|crop_by): \w+ needs the true pictures"):
        step(**params)


def test_pixels_of_another_size_are_refused() -> None:
    with pytest.raises(UserError, match="true pictures are 18 x 18 where decoded ones are 16 x 16"):
        step(gt_pm1=torch.zeros(2, 3, 18, 18), edge_target="pixels")


# How strongly


def output_gradient(**params: Any) -> tuple[Tensor, dict]:
    """The gradient at the U-Net's output and what is logged."""
    model = stage1(parameterization="v", **params)
    kept: list[Tensor] = []

    model.model.diffusion_model.register_forward_hook(lambda _module, _given, output: kept.append(output))
    loss, parts = losses(model, T)
    return torch.autograd.grad(loss, kept[0])[0], parts


@pytest.mark.parametrize("more", [{}, {"edge_decoder_checkpoint": True}, {"edge_crop": 4, "edge_max_timestep": 400}])
def test_the_automatic_weight_brings_the_edge_gradient_to_its_fraction(more: dict) -> None:
    plain, _ = output_gradient()
    both, parts = output_gradient(edge_loss_weight="auto:0.2", **more)
    weight = float(parts["train/edge_weight"])
    if "edge_crop" not in more:  # which draws
        fixed, fixed_parts = output_gradient(edge_loss_weight=weight, **more)
        assert relative_error(both, fixed) < 1e-5
        assert relative_error(parts["train/loss"], fixed_parts["train/loss"]) < 1e-5
    assert float((both - plain).norm() / plain.norm()) == pytest.approx(0.2, rel=1e-4)
    assert float(parts["train/edge_grad_ratio"]) == pytest.approx(0.2, rel=1e-4)


def test_the_ratio_is_measured_at_its_steps_and_changes_nothing() -> None:
    plain, parts = output_gradient(edge_loss_weight=0.3)
    measured, measured_parts = output_gradient(edge_loss_weight=0.3, edge_grad_ratio_every=2)
    main, _ = output_gradient()
    assert "train/edge_grad_ratio" not in parts
    ratio = float((plain - main).norm() / main.norm())
    assert float(measured_parts["train/edge_grad_ratio"]) == pytest.approx(ratio, rel=1e-4)
    assert relative_error(measured, plain) < 1e-5
    assert torch.equal(measured_parts["train/loss"], parts["train/loss"])


def test_a_step_that_measures_walks_the_decoder_backward_once() -> None:
    model, walks = stage1(edge_loss_weight="auto:0.2"), []
    hook = model.first_stage_model.decoder.conv_out.register_full_backward_hook(lambda *_: walks.append(1))
    loss, _ = losses(model, T)
    loss.backward()
    hook.remove()
    assert len(walks) == 1


def test_mixed_precision_keeps_the_automatic_weight() -> None:
    exact = step(edge_loss_weight="auto:0.2")[2]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model, loss, parts = step(edge_loss_weight="auto:0.2", edge_loss_type="charbonnier", edge_operator="sobel")
        half = step(edge_loss_weight="auto:0.2")[2]
    assert loss.dtype == parts["loss_edge"].dtype == torch.float32
    assert relative_error(half["edge_weight"], exact["edge_weight"]) < 0.1
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)


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


def test_the_automatic_weight_reaches_its_fraction_and_survives_a_resume(tmp_path: Path) -> None:
    params = {"edge_loss_weight": "auto:0.2", "edge_warmup_steps": 2, "parameterization": "v"}
    straight, parted, resumed = (stage1(**params) for _ in range(3))
    torch.manual_seed(5)
    run = trainer(tmp_path, 6)
    run.fit(straight, Pairs(6))
    assert float(run.logged_metrics["train/edge_grad_ratio"]) == pytest.approx(0.2, rel=0.5)
    assert run.logged_metrics["train/edge_weight"] == pytest.approx(straight.edge_balance.weight)
    torch.manual_seed(5)
    first = trainer(tmp_path, 3)
    first.fit(parted, Pairs(6))
    first.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["edge_balance"]["updates"] == 3 and not any("balance" in key for key in saved["state_dict"])
    resumed.on_load_checkpoint(saved)
    assert resumed.edge_balance.state_dict() == parted.edge_balance.state_dict() != GradientBalance(0.2).state_dict()
    trainer(tmp_path, 3).fit(resumed, Pairs(6), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert resumed.edge_balance.state_dict() == parted.edge_balance.state_dict()


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
        gradients = [p.grad for p in model.parameters() if p.requires_grad]
        balance = None if model.edge_balance is None else model.edge_balance.state_dict()
        torch.save({"gradients": gradients, "balance": balance}, f"{folder}/{weight}_{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_agree_though_one_has_no_active_sample(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = mp.spawn(one_of_two, (port, str(tmp_path)), nprocs=2, join=False)
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


# To see


def test_the_image_log_shows_weight_and_error_where_the_loss_is_on() -> None:
    plain = stage1(parameterization="v").eval().log_images(pair(), n=2, steps=1)
    edged = stage1(parameterization="v", edge_loss_weight=0.1, edge_target="pixels").eval()
    images = edged.log_images(pair(), n=2, steps=1)
    assert set(images) - set(plain) == {"edge_weight", "edge_error"}
    weight, error = edged.edge_loss.pictures(images["x0_pred"], pair().gt_pm1)
    assert torch.equal(images["edge_weight"], weight.clamp(-1, 1))
    assert images["edge_error"].shape == pair().gt_pm1.shape and error.max() == 1
