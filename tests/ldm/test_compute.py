"""What makes a training step cheaper, and that it changes nothing but what it says."""

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from reference.models import Pairs, gradients, losses, pair, stage1, trainer
from torch import Tensor, nn

from basicsr.utils.errors import FieldError
from basicsr.utils.rng import torch_rng
from ldm.models.diffusion.compute import compile_forward, frozen_products
from ldm.models.diffusion.ddpm import LatentDiffusionSRTextWT
from ldm.models.diffusion.frozen_parts import put_back
from ldm.modules.diffusionmodules.util import group_norm
from ldm.modules.losses.edge_loss import EdgeLoss
from ldm.modules.spade import SPADE

ROOT = Path(__file__).parents[2]
MIXED = {"precision": "bf16-mixed"}
T = torch.tensor([100, 700])


def step(model: LatentDiffusionSRTextWT, index: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    """One training step's loss and parts, without a Trainer."""
    return model._step(pair(index), torch_rng("cpu", "step", index))


def prepared(**params: Any) -> LatentDiffusionSRTextWT:
    """A model as training has it."""
    model = stage1(**params)
    model.on_fit_start()
    return model


# Mixed precision


def test_a_group_norm_of_half_precision_takes_its_statistics_in_float32() -> None:
    norm = group_norm(32, 1e-5)
    x = (100 + torch.randn(1, 32, 64, 64, generator=torch_rng("cpu", "x"))).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = norm(x)
    # Of values around 100, bfloat16 sums would lose everything.
    assert (mixed.float() - norm(x.float())).abs().max() < 4 * 2.0**-8


def test_mixed_precision_leaves_draws_losses_and_x0_in_float32() -> None:
    model = prepared(edge_loss_weight=0.1, edge_loss_type="gradient", edge_operator="sobel")
    seen: list[Tensor] = []
    x0 = type(model.process).x0

    def spy(*args: Any) -> Tensor:
        seen.append(x0(*args))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model.process), "x0", spy)
        exact, _ = step(model)
        with torch.autocast("cpu", torch.bfloat16):
            z_exact, z_mixed = (model.encode(pair(), torch_rng("cpu", "z")) for _ in range(2))
            mixed, parts = step(model)
    assert {z_mixed.z_gt.dtype, mixed.dtype, seen[-1].dtype} | {part.dtype for part in parts.values()} == {
        torch.float32
    }
    assert torch.equal(z_exact.z_lq, z_mixed.z_lq)
    assert mixed.item() == pytest.approx(exact.item(), rel=0.02) and mixed.item() != exact.item()
    mixed.backward()
    assert all(gradient.dtype == torch.float32 for gradient in gradients(model))


def test_the_noise_of_the_posterior_is_the_same_in_every_precision() -> None:
    model = prepared()
    exact = model.encode(pair(), torch_rng("cpu", "z"))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model.encode(pair(), torch_rng("cpu", "z"))
    assert (exact.z_gt - mixed.z_gt).abs().max() < 0.05 * exact.z_gt.std()


def test_the_edge_loss_s_filters_are_exact_under_autocast() -> None:
    model = prepared(edge_loss_weight=0.1, edge_loss_type="gradient", edge_operator="sobel")
    pictures: list[Tensor] = []
    told: list[Tensor] = []
    call = EdgeLoss.__call__

    def spy(self: EdgeLoss, pred_pm1: Tensor, gt_pm1: Tensor, importance: Tensor | None = None) -> Any:
        terms = call(self, pred_pm1, gt_pm1, importance)
        pictures[:], told[:] = [pred_pm1.detach(), gt_pm1], [terms.loss.detach()]
        return terms

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EdgeLoss, "__call__", spy)
        with torch.autocast("cpu", torch.bfloat16):
            losses(model, T)
    assert pictures[0].dtype == torch.bfloat16
    assert torch.equal(told[0], model.edge_loss(*pictures).loss)


# Frozen weights in bfloat16


def test_frozen_weights_in_half_train_alike_and_are_saved_so(tmp_path: Path) -> None:
    exact, rounded = stage1(edge_loss_weight=0.1), stage1(edge_loss_weight=0.1, frozen_dtype="bf16")
    runs = [trainer(tmp_path, 3, **MIXED) for _ in range(2)]
    for model, run in zip((exact, rounded), runs, strict=True):
        run.fit(model, Pairs(3))
    kinds = {name: p.dtype for name, p in rounded.named_parameters()}
    products = {id(weight) for module in frozen_products(rounded) for weight in module.parameters()}
    for name, weight in rounded.named_parameters():
        assert (kinds[name] == torch.bfloat16) == (id(weight) in products), name
    assert kinds["first_stage_model.encoder.conv_in.weight"] == torch.bfloat16
    assert all(p.dtype == torch.float32 for p in rounded.parameters() if p.requires_grad)
    norms = [m for m in rounded.modules() if isinstance(m, nn.GroupNorm | nn.LayerNorm)]
    assert norms and all(norm.weight.dtype == torch.float32 for norm in norms)
    first, second = (run.callback_metrics["train/loss"].item() for run in runs)
    assert first == pytest.approx(second, rel=0.02)
    runs[1].save_checkpoint(tmp_path / "last.ckpt")
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert state.keys() == stage1().state_dict().keys()
    # Whoever loads it, in whatever precision, has the weights that were trained with.
    other = stage1(filled=False)
    other.load_state_dict(state)
    for name, value in other.state_dict().items():
        assert value.dtype == torch.float32 or not value.is_floating_point()
        assert torch.equal(value, state[name].to(value.dtype)), name


def test_frozen_weights_in_half_need_no_mixed_precision(tmp_path: Path) -> None:
    model = stage1(frozen_dtype="bf16", edge_loss_weight=0.1)
    run = trainer(tmp_path, 1)
    run.fit(model, Pairs(1))
    assert run.callback_metrics["train/loss"].isfinite()
    model.eval()
    images = model.log_images(pair(), n=1, steps=2)  # outside of any autocast
    assert all(image.isfinite().all() for image in images.values())


def test_trained_parts_alone_fit_the_file_that_they_began_with(tmp_path: Path) -> None:
    torch.save({"state_dict": stage1().state_dict()}, tmp_path / "base.ckpt")
    params: dict[str, Any] = {"ckpt_path": str(tmp_path / "base.ckpt"), "save_trainable_only": True}
    model = stage1(frozen_dtype="bf16", **params)
    run = trainer(tmp_path, 1)
    run.fit(model, Pairs(1))
    run.save_checkpoint(tmp_path / "last.ckpt")
    whole = put_back(
        torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"], stage1(**params).state_dict(), "last.ckpt"
    )
    assert whole["first_stage_model.encoder.conv_in.weight"].dtype == torch.float32


# The optimiser, and the text tower


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_gradients_can_be_clipped_with_the_fused_optimiser(tmp_path: Path, precision: Any) -> None:
    run = trainer(tmp_path, 1, precision=precision, gradient_clip_val=1.0)
    run.fit(stage1(), Pairs(1))
    assert run.callback_metrics["train/loss"].isfinite()


@pytest.mark.skipif(sys.platform != "linux", reason="a file without a name")
def test_a_large_text_tower_waits_on_the_disk_and_is_in_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ldm.models.diffusion.conditioning.WORTH_A_FILE", 1)
    model, run = stage1(), trainer(tmp_path, 1)
    before = {name: value.clone() for name, value in model.state_dict().items() if name.startswith("cond_stage")}
    tower = model.cond_stage_model
    assert tower is not None
    run.fit(model, Pairs(1))
    run.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert before and all(torch.equal(saved[name], value) for name, value in before.items())
    addresses = [p.data_ptr() for p in tower.parameters() if p.numel() > 100]
    mapped = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if "(deleted)" in line]
    areas = [tuple(int(end, 16) for end in line[0].split("-")) for line in mapped]
    assert all(any(low <= address < high for low, high in areas) for address in addresses)
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


# Layout, compiling, tables


CHANNELS_LAST = """
import torch
from reference.models import pair, stage1
from basicsr.utils.rng import torch_rng
told = []
for channels_last in (False, True):
    model = stage1(channels_last=channels_last, edge_loss_weight=0.1)
    model.on_fit_start()
    loss, _ = model._step(pair(), torch_rng("cpu", "step"))
    loss.backward()
    convolution = model.model.diffusion_model.input_blocks[0][0].weight
    assert convolution.is_contiguous(memory_format=torch.channels_last) == channels_last
    told.append(loss.item())
assert abs(told[0] - told[1]) < 1e-4 * told[0], told
"""


def test_a_step_in_channels_last_is_the_same_and_does_not_crash() -> None:
    """In a process of its own: where the guard in SPADE is missing PyTorch ends the process."""
    done = subprocess.run(
        [sys.executable, "-c", CHANNELS_LAST], capture_output=True, text=True, cwd=ROOT / "tests", env=_environment()
    )
    assert done.returncode == 0, done.stderr


def _environment() -> dict[str, str]:
    return {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}


def test_where_there_is_no_compiler_the_log_says_so_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch._inductor.config as inductor

    monkeypatch.setattr(inductor.cpp, "cxx", ("no-such-compiler",))
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU())
    x = torch.randn(1, 3, 8, 8)
    wanted = network(x)
    compile_forward(network)
    with caplog.at_level(logging.WARNING, logger="ldm"):
        assert torch.equal(network(x), wanted) and torch.equal(network(x), wanted)
    (line,) = [record.getMessage() for record in caplog.records if record.name.startswith("ldm")]
    assert line.startswith("Sequential runs without torch.compile: ") and "\n" not in line


def test_the_process_s_tables_are_made_once_until_the_model_moves() -> None:
    model = stage1()
    process = model.process
    assert model.process is process and model.lvlb_weights is model.lvlb_weights
    model.to(torch.float64)
    assert model.process is not process and model.process.schedule.betas.dtype == torch.float64
    assert torch.allclose(model.lvlb_weights.float(), process.vlb_weights())


def test_below_the_first_spade_nothing_is_kept_for_the_backward_pass() -> None:
    model = prepared()
    spades = [m for m in model.model.modules() if isinstance(m, SPADE)]
    wanted: list[bool] = []
    for spade in spades:
        spade.register_forward_pre_hook(lambda _, given: wanted.append(given[0].requires_grad))
    step(model)
    assert wanted == [False] + [True] * (len(spades) - 1)


# Draws


def test_draws_per_pair_encode_once_and_average_over_the_draws() -> None:
    model = prepared(draws_per_pair=3)
    encoded: list[int] = []
    model.first_stage_model.encoder.register_forward_pre_hook(lambda _, given: encoded.append(len(given[0])))
    loss, _ = step(model)
    assert encoded == [2, 2]  # two pairs' true and degraded pictures, once each
    rng = torch_rng("cpu", "step", 0)
    each = model.encode(pair(), rng)
    z_gt, z_lq = (z.repeat(3, 1, 1, 1) for z in (each.z_gt, each.z_lq))
    t = torch.randint(1000, (6,), generator=rng)
    noise = torch.randn(z_gt.shape, generator=rng)
    alone = [
        model.p_losses(
            z_gt[i : i + 1], model.context(1), model.structcond_stage_model(z_lq[i : i + 1], t[i : i + 1]),
            t[i : i + 1], t[i : i + 1], noise[i : i + 1],
        )[0]
        for i in range(6)
    ]  # fmt: skip
    assert len(set(t.tolist())) > 1
    assert loss.item() == pytest.approx(torch.stack(alone).mean().item(), rel=1e-4)
    model.eval()
    assert step(model)[0].isfinite() and encoded[-2:] == [2, 2]


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"frozen_dtype": "bf61"}, "'bf61' is not known: did you mean 'bf16'?"),
        ({"draws_per_pair": 0}, "a number of 1 or more"),
        ({"pool": "latent"}, "'latent' is not known: did you mean 'latents'?"),
        ({"pool": "latents", "edge_loss_weight": 0.1, "edge_target": "pixels"}, "edge_target: pixels needs them"),
        (
            {"pool": "latents", "edge_loss_weight": 0.1, "edge_crop_by": "edges", "edge_crop": 4},
            "edge_crop_by: edges needs them",
        ),
        ({"compile": "yes"}, "give true or false"),
        ({"compute": {"channels_last": 1}}, "give true or false"),
    ],
)
def test_a_value_that_cannot_be_is_told_by_its_name(params: dict[str, Any], said: str) -> None:
    with pytest.raises(FieldError, match=said.replace("?", r"\?")):
        stage1(**params)


def test_fused_or_not_adamw_takes_the_same_step_but_for_its_last_bits() -> None:
    states = []
    for fused in (False, True):
        model = prepared(fused_adamw=fused)
        optimizer = model.configure_optimizers()
        assert bool(optimizer.defaults["fused"]) == fused
        losses(model, T)[0].backward()
        optimizer.step()
        states.append([p.detach().clone() for p in model.parameters() if p.requires_grad])
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-7) for a, b in zip(*states, strict=True))
