"""CFW trained by a real Trainer on small pictures."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins import MixedPrecision
from reference.models import NO_LOSS, loader, trainer
from reference.parity import relative_error
from torch import Tensor, nn
from torch.utils.data import DataLoader

from basicsr.data.latent_pair import LatentPair
from basicsr.data.pair_pool import Pair
from basicsr.utils.errors import UserError
from basicsr.utils.rng import torch_rng
from ldm.models.autoencoder import AutoencoderKL, AutoencoderKLResi
from ldm.modules.losses.edge_loss import EdgeLoss
from ldm.modules.losses.edge_options import EdgeOptions
from ldm.training.callbacks.skip_not_finite import SkipNotFinite

DDCONFIG = {"ch": 32, "ch_mult": [1, 1, 1], "num_res_blocks": 1, "z_channels": 4, "resolution": 32, "norm_groups": 4}
LOSS: dict[str, Any] = {
    "target": "ldm.modules.losses.LPIPSWithDiscriminator",
    "params": {"disc_start": 0, "disc_num_layers": 1, "kl_weight": 0, "disc_weight": 0.025, "perceptual_weight": 0},
}
LOGGED = (
    "rec_loss", "total_loss", "nll_loss", "kl_loss", "d_weight", "disc_factor", "g_loss", "logits_real", "logits_fake",
    "disc_loss", "logvar",
)  # fmt: skip


def latent_pair(index: int, batch: int = 1) -> LatentPair:
    rng = torch_rng("cpu", "cfw pair", index)
    gt = torch.nn.functional.interpolate(torch.rand(batch, 3, 8, 8, generator=rng) * 2 - 1, size=32, mode="bilinear")
    lq = (gt + 0.1 * torch.randn(gt.shape, generator=rng)).clamp(-1, 1)
    z = torch.randn(batch, 4, 8, 8, generator=rng)
    return LatentPair(lq, gt, tuple(f"{index}-{i}" for i in range(batch)), z=z, sample_pm1=lq)


class LatentPairs(pl.LightningDataModule):
    """`count` batches, handed over as the real data module does."""

    def __init__(self, count: int, same: bool = False) -> None:
        super().__init__()
        self.pairs = [vars(latent_pair(0 if same else i)) for i in range(count)]

    def train_dataloader(self) -> DataLoader[Any]:
        return loader(self.pairs)

    def val_dataloader(self) -> DataLoader[Any]:
        return loader(self.pairs[:1])

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> LatentPair:
        return LatentPair(**{**batch, "paths": tuple(batch["paths"])})


def cfw(learning_rate: float = 1e-3, **params: Any) -> AutoencoderKLResi:
    torch.manual_seed(0)
    model = AutoencoderKLResi(**{"ddconfig": DDCONFIG, "lossconfig": LOSS, "embed_dim": 4, **params})
    model.learning_rate = learning_rate
    return model


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def changed(before: dict[str, Tensor], model: nn.Module) -> set[str]:
    return {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}


def test_only_fusion_layers_and_discriminator_are_trained_and_all_is_logged(tmp_path: Path) -> None:
    model = cfw()
    before = weights(model)
    run = trainer(tmp_path, 3)
    run.fit(model, LatentPairs(3))
    moved = changed(before, model)
    assert all("fusion_layer" in key or key.startswith("loss.discriminator.") for key in moved)
    assert {key for key, _ in model.named_parameters() if "fusion_layer" in key} <= moved
    assert {key for key, _ in model.loss.discriminator.named_parameters(prefix="loss.discriminator")} <= moved
    assert {f"{split}/{name}" for split in ("train", "val") for name in LOGGED} <= set(run.callback_metrics)
    assert run.global_step == 3  # a step for both optimisers
    assert float(run.callback_metrics["train/d_weight"]) > 0
    assert float(run.callback_metrics["val/d_weight"]) == 0


def test_without_freeze_dec_the_whole_autoencoder_is(tmp_path: Path) -> None:
    model = cfw(freeze_dec=False)
    before = weights(model)
    trainer(tmp_path, 2).fit(model, LatentPairs(2))
    parts = {key.split(".")[0] for key in changed(before, model)}
    assert parts == {"encoder", "decoder", "post_quant_conv", "loss"}  # kl_weight 0 leaves quant_conv in peace


def test_it_learns_a_picture(tmp_path: Path) -> None:
    model, pair = cfw(3e-3), latent_pair(0)

    def error() -> float:
        return float((model.reconstruct(pair)[0] - pair.gt_pm1).abs().mean().detach())

    before = error()
    trainer(tmp_path, 40).fit(model, LatentPairs(40, same=True))
    assert error() < 0.6 * before


def test_the_discriminator_waits_for_its_step(tmp_path: Path) -> None:
    late = {**LOSS, "params": {**LOSS["params"], "disc_start": 3}}
    for steps, moves in ((3, False), (4, True)):
        model = cfw(lossconfig=late)
        before = weights(model)
        trainer(tmp_path, steps).fit(model, LatentPairs(4))
        assert ("loss.discriminator.main.0.weight" in changed(before, model)) is moves


# So small that Adam's step, which otherwise forgets how long a gradient is, is proportional to it: 1e-8 is its epsilon.
CLIPPED = 1e-6


def update(before: dict[str, Tensor], model: nn.Module) -> Tensor:
    """How far all trained weights have moved, as one vector."""
    after = model.state_dict()
    keys = [key for key, _ in model.named_parameters() if "fusion_layer" in key or "discriminator" in key]
    return torch.cat([(after[key] - before[key]).flatten() for key in keys])


def test_accumulation_is_one_clipped_step_of_the_mean(tmp_path: Path) -> None:
    no_gan = {**LOSS, "params": {**LOSS["params"], "disc_factor": 0.0}}
    several, at_once = cfw(lossconfig=no_gan), cfw(lossconfig=no_gan)
    before = weights(several)
    run = trainer(tmp_path, 1, accumulate_grad_batches=2, gradient_clip_val=CLIPPED)
    pairs = LatentPairs(2)
    run.fit(several, pairs)
    assert run.global_step == 1
    assert run.accumulate_grad_batches == 2  # put back for all who count steps by it

    losses = []
    for each in (latent_pair(0), latent_pair(1)):
        decoded, _, _ = at_once.reconstruct(each)
        losses.append((decoded - each.gt_pm1).abs().mean())
    torch.stack(losses).mean().backward()
    fusion = [p for key, p in at_once.named_parameters() if "fusion_layer" in key]
    assert float(nn.utils.clip_grad_norm_(fusion, CLIPPED)) > CLIPPED
    torch.optim.Adam(fusion, lr=1e-3, betas=(0.5, 0.9)).step()
    assert relative_error(update(before, several), update(before, at_once)) < 1e-2


def test_a_resumed_run_ends_as_one_that_was_not_stopped(tmp_path: Path) -> None:
    whole = cfw()
    trainer(tmp_path, 4).fit(whole, LatentPairs(4, same=True))
    first = cfw()
    saver = ModelCheckpoint(tmp_path, filename="half", every_n_train_steps=2)
    trainer(tmp_path, 2, enable_checkpointing=True, callbacks=[saver]).fit(first, LatentPairs(4, same=True))
    second = cfw()
    run = trainer(tmp_path, 4)
    run.fit(second, LatentPairs(4, same=True), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert run.global_step == 4
    assert not changed(weights(whole), second)


def test_two_processes_are_one_that_accumulates(tmp_path: Path) -> None:
    one, two = cfw(), cfw()
    before = weights(one)
    trainer(tmp_path, 1, gradient_clip_val=CLIPPED, accumulate_grad_batches=2).fit(one, LatentPairs(2))
    trainer(tmp_path, 1, gradient_clip_val=CLIPPED, devices=2, strategy="ddp_fork").fit(two, LatentPairs(2))
    assert relative_error(update(before, two), update(before, one)) < 1e-2


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_half_precision_trains(precision: str, tmp_path: Path) -> None:
    model = cfw()
    before = weights(model)
    run = trainer(tmp_path, 2, precision=precision, gradient_clip_val=1.0)
    run.fit(model, LatentPairs(2))
    assert all(value.dtype == torch.float32 for value in model.state_dict().values() if value.is_floating_point())
    assert bool(update(before, model).isfinite().all())
    assert update(before, model).norm() > 0


def test_a_gradient_that_is_not_finite_is_skipped_in_either_optimiser(tmp_path: Path) -> None:
    listed = {}
    for network in ("fusion_layer", "discriminator"):
        model, folder = cfw(), tmp_path / network
        folder.mkdir()
        parameter = next(p for name, p in model.named_parameters() if network in name)
        seen: list[int] = []

        def spoil(gradient: Tensor, seen: list[int] = seen) -> Tensor:
            seen.append(1)
            return gradient * (float("nan") if len(seen) == 2 else 1.0)

        parameter.register_hook(spoil)
        before = weights(model)
        skip = SkipNotFinite()
        trainer(folder, 3, callbacks=[skip]).fit(model, LatentPairs(3))
        assert skip.skipped == 1  # whichever of the two it was
        moved = changed(before, model)
        assert any("fusion_layer" in key for key in moved) and any("discriminator" in key for key in moved)
        assert all(bool(value.isfinite().all()) for value in model.state_dict().values())
        listed[network] = (folder / "skipped_steps.txt").read_text()
    assert set(listed.values()) == {"2\t0\tgradient\t1-0\n"}


@pytest.mark.parametrize("overflow", [False, True])
def test_a_scaled_loss_gives_the_same_steps_and_an_overflow_lowers_the_scale(overflow: bool, tmp_path: Path) -> None:
    """fp16 needs a GPU; what its scaler does to two optimisers does not."""
    updates = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=2.0**10)):
        model = cfw()
        if overflow and scaler is not None:
            parameter = next(p for name, p in model.named_parameters() if "fusion_layer" in name)
            factors = iter([float("inf"), 1.0, 1.0])
            parameter.register_hook(lambda gradient, factors=factors: gradient * next(factors))
        before = weights(model)
        plugins = [] if scaler is None else [MixedPrecision("16-mixed", "cpu", scaler)]
        for plugin in plugins:  # the networks' own numbers stay in 32 bits
            plugin.autocast_context_manager = nullcontext  # type: ignore[method-assign, assignment]  # replaced on purpose
        # The first of three batches is lost to the overflow.
        trainer(tmp_path, 3 if overflow and scaler else 2, plugins=plugins).fit(model, LatentPairs(3, same=True))
        updates.append(update(before, model))
    assert scaler is not None and scaler.get_scale() == (2.0**9 if overflow else 2.0**10)
    assert bool(updates[1].isfinite().all())
    if not overflow:
        assert relative_error(updates[1], updates[0]) < 1e-3


def test_checkpoints_have_the_published_names_and_load_for_upscaling(tmp_path: Path) -> None:
    model = cfw()
    keys = set(model.state_dict())
    plain = AutoencoderKL(DDCONFIG, NO_LOSS, 4)
    fused = {f"decoder.fusion_layer_{level}." for level in (1, 2)}
    ours = {key for key in keys if not key.startswith((*fused, "loss."))}
    assert ours == set(plain.state_dict())
    assert all(any(key.startswith(name) for key in keys) for name in fused)
    assert {key for key in keys if key.startswith("loss.")} == {
        "loss.logvar", "loss.discriminator.main.0.weight", "loss.discriminator.main.0.bias",
        "loss.discriminator.main.2.weight", "loss.discriminator.main.5.weight", "loss.discriminator.main.5.bias",
        *(f"loss.discriminator.main.3.{name}" for name in
          ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")),
    }  # fmt: skip
    torch.save({"state_dict": model.state_dict()}, tmp_path / "cfw.ckpt")
    loaded = cfw(lossconfig=NO_LOSS, ckpt_path=str(tmp_path / "cfw.ckpt"))
    pair = latent_pair(1)
    assert torch.equal(loaded.reconstruct(pair)[0], model.reconstruct(pair)[0])


def test_training_starts_from_stable_diffusions_autoencoder_and_upscaling_does_not(tmp_path: Path) -> None:
    plain = AutoencoderKL(DDCONFIG, NO_LOSS, 4)
    state = {f"first_stage_model.{key}": value for key, value in plain.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "sd.ckpt")
    model = cfw(ckpt_path=str(tmp_path / "sd.ckpt"))
    assert torch.equal(model.encoder.conv_in.weight, plain.encoder.conv_in.weight)
    with pytest.raises(UserError, match="fusion_layer"):
        cfw(lossconfig=NO_LOSS, ckpt_path=str(tmp_path / "sd.ckpt"))


def test_the_edge_loss_joins(tmp_path: Path) -> None:
    model = cfw(edge_loss_weight=2.0)
    run = trainer(tmp_path, 1)
    run.fit(model, LatentPairs(1))
    logged = {key: float(value) for key, value in run.callback_metrics.items()}
    adversarial = logged["train/d_weight"] * logged["train/g_loss"]
    total = logged["train/nll_loss"] + adversarial + 2 * logged["train/loss_edge"]
    assert logged["train/total_loss"] == pytest.approx(total, rel=1e-5)
    assert logged["train/loss_edge"] > 0
    decoded_pm1, pair = model.reconstruct(latent_pair(0))[0].detach(), latent_pair(0)
    for kind in ("weighted_mse", "magnitude"):
        found = cfw(edge_loss_weight=2.0, edge_loss_type=kind).edge_loss(decoded_pm1, pair.gt_pm1).loss
        assert found == EdgeLoss(options=EdgeOptions(loss_type=kind))(decoded_pm1, pair.gt_pm1).loss
    with pytest.raises(UserError, match="edge_loss_type is 'adversarial': this stage has its discriminator"):
        cfw(edge_loss_weight=2.0, edge_loss_type="adversarial")


def test_the_true_latent_can_stand_in() -> None:
    pair, model = latent_pair(0), cfw(test_gt=True)
    posterior, features = model.encode(pair.lq_pm1)
    want = model.decode(model.encode(pair.gt_pm1)[0].mean, features)
    assert torch.equal(model.reconstruct(pair)[0], want)


def test_its_pictures() -> None:
    pictures = cfw().log_images(latent_pair(0, batch=3), 2)
    assert list(pictures) == ["inputs", "gts", "samples", "reconstructions"]
    assert all(image.shape == (2, 3, 32, 32) and image.abs().max() <= 1 for image in pictures.values())


def test_what_cannot_train_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="LPIPSWithDiscriminator, not with Identity"):
        trainer(tmp_path, 1).fit(cfw(lossconfig=NO_LOSS), LatentPairs(1))
    pair = latent_pair(0)
    with pytest.raises(UserError, match="generate_cfw_data"):
        cfw().log_images(Pair(pair.lq_pm1, pair.gt_pm1, pair.paths))
    with pytest.raises(UserError, match="synthesis_data"):
        cfw(synthesis_data=True)
