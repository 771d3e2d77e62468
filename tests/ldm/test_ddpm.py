from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger
from pytorch_lightning.strategies import SingleDeviceStrategy
from reference.models import SMALL_TEXT, Pairs, pair, stage1, trainer
from reference.parity import relative_error
from torch import Tensor, nn

from basicsr.utils.errors import UserError
from basicsr.utils.rng import torch_rng
from ldm.models.diffusion.conditioning import TextConditioner
from ldm.models.diffusion.ddpm import LatentDiffusionSRTextWT
from ldm.modules.spade import SPADE

# A model, its state before training, its checkpoint, and the prompts that it encoded.
Fitted = tuple[LatentDiffusionSRTextWT, dict[str, Tensor], Path, list[str]]


class Rows(Logger):
    """Keeps what is logged: (step, values)."""

    name, version = "rows", 0

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int | None, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append((step, dict(metrics)))

    def log_hyperparams(self, *_args: Any, **_params: Any) -> None:
        """There are none."""


def tower(model: LatentDiffusionSRTextWT) -> nn.Module:
    """The text tower, which is still there."""
    assert model.cond_stage_model is not None
    return model.cond_stage_model


def trained_modules(model: pl.LightningModule) -> Iterator[nn.Module]:
    assert isinstance(model, LatentDiffusionSRTextWT)
    yield from model.structcond_stage_model.modules()
    for spade in (module for module in model.model.modules() if isinstance(module, SPADE)):
        yield from spade.modules()


def assert_modes(model: pl.LightningModule, training: bool) -> None:
    trained = set(trained_modules(model))
    assert model.training == training
    for name, module in model.named_modules():
        if module is not model:
            assert module.training == (training and module in trained), name


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    """A model after three steps with two validations, its state before, its checkpoint, and the prompts encoded."""
    model = stage1(prompt="a sharp photograph", edge_loss_weight=0.1)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    prompts: list[str] = []
    tower(model).register_forward_pre_hook(lambda _module, given: prompts.extend(given[0]))
    folder = tmp_path_factory.mktemp("fitted")
    run = trainer(folder, 3, val_check_interval=1)
    run.fit(model, Pairs(3))
    run.save_checkpoint(folder / "last.ckpt")
    return model, before, folder / "last.ckpt", prompts


# What is trained


def test_spade_and_structure_are_trained_and_nothing_else() -> None:
    model = stage1()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {
        name for name, _ in model.named_parameters() if ".spade." in name or name.startswith("structcond_stage_model.")
    }
    (group,) = model.configure_optimizers().param_groups
    assert {id(p) for p in group["params"]} == {id(p) for p in model.parameters() if p.requires_grad}
    assert stage1(learning_rate=3e-4).configure_optimizers().param_groups[0]["lr"] == 3e-4


def test_frozen_parts_stay_in_evaluation_mode() -> None:
    model = stage1()
    assert_modes(model, True)
    assert_modes(model.eval(), False)
    assert_modes(model.train(), True)
    unfrozen = stage1(unfrozen_diff=True)
    assert all(module.training for module in unfrozen.model.modules())
    assert not any(module.training for module in unfrozen.first_stage_model.modules())


def test_a_real_fit_with_validation_moves_the_trained_part_alone(fitted: Fitted) -> None:
    model, before, _, _ = fitted
    assert_modes(model, True)
    after = model.state_dict()
    for name, parameter in model.named_parameters():
        assert torch.equal(after[name], before[name]) != parameter.requires_grad, name


def test_modes_hold_during_the_fit(tmp_path: Path) -> None:
    class Watch(Callback):
        seen: list[str] = []

        def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object) -> None:
            assert_modes(pl_module, True)
            self.seen.append("train")

        def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object) -> None:
            assert_modes(pl_module, False)
            self.seen.append("validation")

    run = trainer(tmp_path, 2, val_check_interval=1, callbacks=[Watch()])
    run.fit(stage1(), Pairs(2))
    assert Watch.seen == ["train", "validation"] * 2
    assert {"train/loss", "train/loss_simple", "train/loss_vlb", "val/loss", "val/loss_simple", "val/loss_vlb"} == set(
        run.logged_metrics
    )


# Text


def test_the_prompt_is_encoded_once_and_the_tower_let_go(fitted: Fitted) -> None:
    model, _, _, prompts = fitted
    assert prompts == ["a sharp photograph"]
    assert model.cond_stage_model is None
    assert not any(name.startswith("cond_stage_model") for name, _ in model.named_parameters())
    with pytest.raises(UserError, match="'another' cannot be encoded; set model.params.keep_text_encoder=true"):
        model.contexts(["another"])


def test_a_saved_checkpoint_is_complete(fitted: Fitted) -> None:
    model, before, file, _ = fitted
    saved = torch.load(file, weights_only=True)["state_dict"]
    assert set(saved) == set(before)
    for key in before:
        assert torch.equal(saved[key], before[key]) or ".spade." in key or key.startswith("structcond"), key
    fresh = stage1(filled=False, ckpt_path=str(file))
    assert all(torch.equal(value, saved[key]) for key, value in fresh.state_dict().items())


def test_a_resumed_fit_goes_on_with_the_checkpoints_text(fitted: Fitted, tmp_path: Path) -> None:
    model, before, file, _ = fitted
    resumed = stage1(filled=False, prompt="a sharp photograph")
    run = trainer(tmp_path, 4)
    run.fit(resumed, Pairs(2), ckpt_path=file, weights_only=True)
    assert run.global_step == 4
    assert torch.equal(resumed.context(1), model.context(1))
    run.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    text = [key for key in before if key.startswith("cond_stage_model.")]
    assert all(torch.equal(saved[key], before[key]) for key in text)


def test_a_model_without_its_tower_takes_a_complete_checkpoint(fitted: Fitted, tmp_path: Path) -> None:
    model, before, file, _ = fitted
    run = trainer(tmp_path, 4)
    run.fit(model, Pairs(2), ckpt_path=file, weights_only=True)
    run.save_checkpoint(tmp_path / "last.ckpt")
    assert set(torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]) == set(before)


def test_keep_text_encoder_keeps_it(tmp_path: Path) -> None:
    model = stage1(keep_text_encoder=True)
    run = trainer(tmp_path, 1)
    run.fit(model, Pairs(1))
    assert model.contexts(["another"]).shape == (1, 5, 32)
    run.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert set(saved) == set(model.state_dict())


def test_the_latest_prompts_are_remembered_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ldm.models.diffusion.conditioning.REMEMBERED", 2)
    asked: list[str] = []

    class Tower(torch.nn.Module):
        def forward(self, prompts: list[str]) -> torch.Tensor:
            asked.extend(prompts)
            return torch.full((1, 2, 3), float(len(asked)))

    text = TextConditioner(Tower())
    assert text(["a", "b", "c", "a"])[:, 0, 0].tolist() == [1, 2, 3, 1]  # also of more than it remembers
    text(["b", "c"])
    assert asked == ["a", "b", "c"]
    text(["a"])
    assert asked == ["a", "b", "c", "a"]


def test_distinct_prompts_are_encoded_once_each_and_kept_apart() -> None:
    model, prompts = stage1(), list[str]()
    tower(model).register_forward_pre_hook(lambda _module, given: prompts.extend(given[0]))
    first = model.contexts(["cat", "dog", "cat"])
    again = model.contexts(["dog", "bird"])
    assert prompts == ["cat", "dog", "bird"]
    assert torch.equal(first[0], first[2])
    assert torch.equal(first[1], again[0])
    assert relative_error(first[0], first[1]) > 1e-2
    assert torch.equal(first[1:2], tower(model)(["dog"]))
    assert not first.requires_grad


def test_the_text_tower_may_not_be_trained() -> None:
    with pytest.raises(UserError, match="cond_stage_trainable is True, which is not supported"):
        stage1(cond_stage_trainable=True)
    params = {**SMALL_TEXT["params"], "freeze": False}
    model = stage1(cond_stage_config={**SMALL_TEXT, "params": params})
    assert not any(p.requires_grad for p in tower(model).parameters())


# Randomness


def test_a_step_is_a_function_of_seed_and_place() -> None:
    model, other = stage1(), stage1()
    torch.manual_seed(7)
    first = model.training_step(pair(), 3)
    state = torch.get_rng_state()
    torch.randn(5)
    assert torch.equal(other.training_step(pair(), 3), first)
    assert not torch.equal(model.training_step(pair(), 4), first)
    torch.manual_seed(8)
    assert not torch.equal(model.training_step(pair(), 3), first)
    torch.manual_seed(7)
    assert torch.equal(torch.get_rng_state(), state)  # no step drew from the global stream


class SecondRank(SingleDeviceStrategy):
    """What the second of several processes would see, in one."""

    def __init__(self) -> None:
        super().__init__("cpu")
        self.global_rank = 1


def losses_by_epoch(folder: Path, **params: Any) -> list[float]:
    """loss_simple of the one batch of each of two epochs; the weights stay as they are."""

    class Watch(Callback):
        seen: list[float] = []

        def on_train_batch_end(self, run: pl.Trainer, *_: object) -> None:
            self.seen.append(float(run.callback_metrics["train/loss_simple"]))

    torch.manual_seed(7)
    watch = Watch()
    watch.seen = []
    trainer(folder, 2, callbacks=[watch], **params).fit(stage1(learning_rate=1e-30), Pairs(1))
    return watch.seen


def test_every_epoch_and_every_rank_has_noise_of_its_own(tmp_path: Path) -> None:
    first, second = losses_by_epoch(tmp_path), losses_by_epoch(tmp_path, strategy=SecondRank())
    assert losses_by_epoch(tmp_path) == first
    assert len({*first, *second}) == 4


def test_a_step_logs_what_it_measured_and_nothing_older(tmp_path: Path) -> None:
    """Some steps have no sample below the gate: their rows hold no edge loss, rather than an earlier step's."""
    torch.manual_seed(7)
    logger = Rows()
    model = stage1(edge_loss_weight=0.5, edge_max_timestep=300, edge_grad_ratio_every=3)
    trainer(tmp_path, 8, logger=logger, log_every_n_steps=1).fit(model, Pairs(4))
    rows = [(step, row) for step, row in logger.rows if "train/loss" in row]  # the others are validation's
    assert [step for step, _ in rows] == list(range(8))
    active = [bool(row["train/edge_active"]) for _, row in rows]
    assert set(active) == {True, False}
    assert [any(key.startswith("train/loss_edge") for key in row) for _, row in rows] == active
    assert [{"train/edge_map_mse", "train/edge_share"} <= set(row) for _, row in rows] == active
    assert [step for step, row in rows if "train/edge_grad_ratio" in row] == [s for s in (0, 2, 5) if active[s]]
    for _, row in rows:
        quarters = [value for key, value in row.items() if key.startswith("train/loss_edge_t")]
        assert not quarters or min(quarters) <= row["train/loss_edge"] <= max(quarters)
        want = row["train/loss_simple"] + 0.5 * row.get("train/loss_edge", 0.0)
        assert row["train/loss"] == pytest.approx(want, rel=1e-5)


def test_what_is_logged_of_training_is_never_the_validation_split() -> None:
    model = stage1()
    rng = torch_rng("cpu", "test")
    assert {name.split("/")[0] for name in model._step(pair(), rng)[1]} == {"train"}
    assert {name.split("/")[0] for name in model.eval()._step(pair(), rng)[1]} == {"val"}


# Pictures


def test_encoding_is_a_scaled_sample_of_the_posterior() -> None:
    model = stage1(scale_factor=0.5)
    latents = model.encode(pair(), torch_rng("cpu", "test"))
    rng = torch_rng("cpu", "test")
    for image, z in ((pair().gt_pm1, latents.z_gt), (pair().lq_pm1, latents.z_lq)):
        posterior = model.first_stage_model.encode(image)
        assert relative_error(z, 0.5 * posterior.sample(rng)) < 1e-6
        assert not z.requires_grad
    assert relative_error(model.decode(latents.z_gt), model.first_stage_model.decode(latents.z_gt / 0.5)) < 1e-6


def test_pictures_for_the_log() -> None:
    model = stage1(parameterization="v").eval()
    state = torch.get_rng_state()
    images = model.log_images(pair(batch=3), n=2, steps=2)
    assert list(images) == ["lq", "gt", "x0_pred", "sample", "edge_gt", "edge_pred"]
    for image in images.values():
        assert image.shape == (2, 3, 16, 16)
        assert float(image.abs().max()) <= 1
    assert torch.equal(images["lq"], pair(batch=3).lq_pm1[:2])
    assert set(images["edge_gt"].unique().tolist()) <= {-1.0, 1.0}
    again = model.log_images(pair(batch=3), n=2, steps=2)
    assert all(torch.equal(images[name], again[name]) for name in images)
    assert torch.equal(torch.get_rng_state(), state)


def test_pictures_show_the_averaged_weights() -> None:
    model = stage1(use_ema=True)
    before = model.log_images(pair(), n=1, steps=1)
    with torch.no_grad():
        for module in trained_modules(model):
            if isinstance(module, SPADE):
                module.mlp_beta.weight.add_(1.0)
    after = model.log_images(pair(), n=1, steps=1)
    assert torch.equal(before["x0_pred"], after["x0_pred"])
    assert model.edge_probe(pair()) == stage1().edge_probe(pair())
