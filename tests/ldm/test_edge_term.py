"""The edge loss's options within a real training step: which samples, which windows, against what."""

from collections import Counter
from typing import Any

import pytest
import torch
from reference.models import latents, losses, pair, stage1
from reference.parity import noise, relative_error
from torch import Tensor, nn

from basicsr.utils.errors import UserError
from basicsr.utils.rng import torch_rng
from ldm.models.diffusion.ddpm import LatentDiffusionSRTextWT
from ldm.models.diffusion.training_loss import LossReport
from ldm.modules.losses.edge_windows import FLOOR, Windows, draw_by_edges, draw_uniform

T = torch.tensor([150, 700])
CELLS, F = 8, 2  # the small model's latents and pixels per cell


def step(
    t: Tensor = T, gt_pm1: Tensor | None = None, **params: Any
) -> tuple[LatentDiffusionSRTextWT, Tensor, dict[str, Tensor]]:
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
    n = model.process.noised(given["x_start"], t=t, noise=given["noise"])
    output = model.apply_model(n.x_t, t, given["cond"], structure)
    return model.process.x0(output, n)


def by_hand(model: LatentDiffusionSRTextWT, z_pred: Tensor, truth_pm1: Tensor) -> Tensor:
    with torch.no_grad():
        return model.edge_loss(model.decode(z_pred), truth_pm1).loss


def decodes(model: LatentDiffusionSRTextWT) -> list[tuple[int, ...]]:
    """The shapes of what is decoded from here on."""
    shapes: list[tuple[int, ...]] = []
    decoder: nn.Module = model.first_stage_model.decoder
    decoder.register_forward_pre_hook(lambda _module, given: shapes.append(tuple(given[0].shape)))
    return shapes


# When


@pytest.mark.parametrize("gate", [{"edge_max_timestep": 150}, {"edge_min_snr": 1.0},
                                  {"edge_max_timestep": 999, "edge_min_snr": 1.0}])  # fmt: skip
def test_only_samples_that_pass_are_decoded_and_averaged(gate: dict[str, Any]) -> None:
    model, loss, parts = step(**gate)
    first = slice(0, 1)
    truth = model.decode(latents()["x_start"][first])
    want = by_hand(model, predicted(model)[first], truth)
    assert relative_error(parts["loss_edge"], want) < 1e-5
    assert parts["edge_active"] == 0.5
    assert relative_error(loss, step(edge_loss_weight=0.0)[1] + 0.5 * want) < 1e-5
    shapes = decodes(model)
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
def test_without_an_active_sample_nothing_is_decoded_and_the_gradient_is_the_main_loss(weight: float | str) -> None:
    def gradients(**params: Any) -> list[Tensor]:
        model = stage1(parameterization="v", **params)
        shapes = decodes(model)
        loss, parts = losses(model, T)
        assert not shapes and not any(name.startswith("train/loss_edge") for name in parts)
        assert params.get("edge_loss_weight", 0) == 0 or parts["train/edge_active"] == 0
        loss.backward()
        return [loss.detach(), *(p.grad for p in model.parameters() if p.requires_grad)]

    plain, gated = gradients(), gradients(edge_loss_weight=weight, edge_max_timestep=100)
    assert all(relative_error(a, b) < 1e-5 for a, b in zip(gated, plain, strict=True))


def test_the_empty_loss_is_0_and_connected_also_where_the_output_overflows() -> None:
    model = stage1(filled=False, edge_loss_weight=0.5, edge_max_timestep=0)
    output = torch.full((2, 4, CELLS, CELLS), float("inf"), requires_grad=True)
    n = model.process.noised(latents()["x_start"], t=T, noise=latents()["noise"])
    report = model.edge_term(LossReport(torch.tensor(1.0), {}), model.process, n, output)
    report.total.backward()
    assert report.total == 1 and torch.equal(output.grad, torch.zeros_like(output))


@pytest.mark.parametrize(("t", "quarters"), [([0, 249], "0"), ([250, 999], "13"), ([500, 500], "2")])
def test_losses_are_logged_by_quarter_of_the_process(t: list[int], quarters: str) -> None:
    _, loss, parts = step(torch.tensor(t))
    found = {name: value for name, value in parts.items() if name.startswith("loss_edge_t")}
    assert set(found) == {f"loss_edge_t{quarter}" for quarter in quarters}
    assert relative_error(torch.stack(list(found.values())).mean(), parts["loss_edge"]) < 1e-5
    assert relative_error(parts["edge_share"], 0.5 * parts["loss_edge"] / loss) < 1e-5


# Where


def test_windows_are_cut_alike_from_both_and_decoded_alone() -> None:
    model, _, parts = step(edge_crop=3)
    windows = draw_uniform(latents()["x_start"], 3, torch_rng("cpu", "windows"))
    with torch.no_grad():
        truth = model.decode(windows.cut(latents()["x_start"]))
    assert relative_error(parts["loss_edge"], by_hand(model, windows.cut(predicted(model)), truth)) < 1e-5
    shapes = decodes(model)
    losses(model, T)
    assert shapes == [(2, 4, 3, 3)] * 2


def test_a_window_of_the_whole_frame_is_the_frame() -> None:
    _, loss, parts = step()
    _, cropped, cropped_parts = step(edge_crop=CELLS)
    assert torch.equal(loss, cropped) and torch.equal(parts["loss_edge"], cropped_parts["loss_edge"])


def test_windows_leave_timesteps_and_noise_as_they_were() -> None:
    plain, cropped = (
        stage1(edge_loss_weight=0.5, **more)._step(pair(), torch_rng("cpu", "test"))[1]
        for more in ({}, {"edge_crop": 4, "edge_crop_by": "edges", "edge_target": "pixels"})
    )
    assert torch.equal(plain["train/loss_simple"], cropped["train/loss_simple"])
    assert not torch.equal(plain["train/loss_edge"], cropped["train/loss_edge"])


def test_windows_are_drawn_from_the_steps_own_stream() -> None:
    model, state = stage1(edge_loss_weight=0.5, edge_crop=3), torch.get_rng_state()
    draws = [model._step(pair(), torch_rng("cpu", name))[1]["train/loss_edge"] for name in ("a", "a", "b")]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert torch.equal(torch.get_rng_state(), state)


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


def test_pixels_spare_a_decode_and_are_the_truth() -> None:
    gt = noise("picture", (2, 3, CELLS * F, CELLS * F)).clamp(-1, 1)
    model, _, parts = step(gt_pm1=gt, edge_target="pixels")
    assert relative_error(parts["loss_edge"], by_hand(model, predicted(model), gt)) < 1e-5
    shapes = decodes(model)
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
def test_a_step_without_the_pixels_it_needs_says_so(params: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"edge_(target|crop_by) is '\w+', which needs the true pictures"):
        step(**params)


def test_pixels_of_another_size_are_refused() -> None:
    with pytest.raises(UserError, match="true pictures are 18 x 18 where decoded ones are 16 x 16"):
        step(gt_pm1=torch.zeros(2, 3, 18, 18), edge_target="pixels")


# To see


def test_the_image_log_shows_weight_and_error_where_the_loss_is_on() -> None:
    plain = stage1(parameterization="v").eval().log_images(pair(), n=2, steps=1)
    edged = stage1(parameterization="v", edge_loss_weight=0.1, edge_target="pixels").eval()
    images = edged.log_images(pair(), n=2, steps=1)
    assert set(images) - set(plain) == {"edge_weight", "edge_error"}
    weight, error = edged.edge_loss.pictures(images["x0_pred"], pair().gt_pm1)
    assert torch.equal(images["edge_weight"], weight.clamp(-1, 1))
    assert images["edge_error"].shape == pair().gt_pm1.shape and error.max() == 1
