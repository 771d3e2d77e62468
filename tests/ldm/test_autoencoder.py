import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from reference.models import NO_LOSS, SMALL, Pairs, pair, trainer
from reference.parity import CONFIG, SIDE, fill, noise, relative_error
from torch import nn

from basicsr.utils.errors import UserError
from basicsr.utils.rng import torch_rng
from ldm.models.autoencoder import AutoencoderKL, AutoencoderKLResi
from ldm.modules.distributions.distributions import DiagonalGaussianDistribution
from ldm.modules.losses.reconstruction_loss import ReconstructionLoss

Arrays = Callable[[str], dict[str, np.ndarray]]
RECONSTRUCTION = {"target": "ldm.modules.losses.reconstruction_loss.ReconstructionLoss"}


def tiny(cls: type[AutoencoderKL], **ddconfig: object) -> AutoencoderKL:
    config = {**CONFIG["first_stage"], **ddconfig}
    return fill(cls(ddconfig=config, lossconfig=NO_LOSS, embed_dim=4)).eval().requires_grad_(False)


def every_fourth(image: torch.Tensor) -> torch.Tensor:
    """The pixels that the reference holds."""
    return image[:, :, ::4, ::4]


def test_it_matches_the_published_autoencoder(arrays: Arrays) -> None:
    reference, vae = arrays("modules"), tiny(AutoencoderKL)
    posterior = vae.encode(noise("img", (2, 3, 8 * SIDE, 8 * SIDE)).clamp(-1, 1))
    assert relative_error(posterior.mean, reference["vae_mean"]) < 1e-4
    assert relative_error(posterior.logvar, reference["vae_logvar"]) < 1e-4
    assert relative_error(every_fourth(vae.decode(noise("z", (2, 4, SIDE, SIDE)))), reference["vae_decode"]) < 1e-4


def test_feature_wrapping_matches_the_published_decoder(arrays: Arrays) -> None:
    reference, cfw, z = arrays("modules"), tiny(AutoencoderKLResi), noise("z", (2, 4, SIDE, SIDE))
    posterior, features = cfw.encode(noise("img", (2, 3, 8 * SIDE, 8 * SIDE)).clamp(-1, 1))
    assert relative_error(posterior.mean, reference["vae_mean"]) < 1e-4
    for weight, name in ((0.0, "vae_decode"), (0.5, "cfw_decode_w0.5"), (1.0, "cfw_decode_w1.0")):
        assert relative_error(every_fourth(cfw.decode(z, features, weight)), reference[name]) < 1e-4
        assert cfw.decoder.fusion_w == 1.0  # networks that are shared are not changed


def test_attention_in_a_level_is_where_the_config_puts_it() -> None:
    keys = tiny(AutoencoderKL, attn_resolutions=[32]).state_dict()
    levels = {key.split(".attn.")[0] for key in keys if ".attn." in key}
    assert levels == {"encoder.down.2", "decoder.up.2"}  # 128 / 2^2 = 32


def test_a_mistyped_ddconfig_key_is_named() -> None:
    with pytest.raises(UserError, match="ch_mul.*did you mean 'ch_mult'"):
        tiny(AutoencoderKL, ch_mul=[1, 2])


def test_the_posterior_is_a_diagonal_gaussian() -> None:
    moments = torch.cat([noise("m", (2, 3, 4, 4)), 0.5 * noise("v", (2, 3, 4, 4))], dim=1)
    posterior = DiagonalGaussianDistribution(moments)
    assert torch.equal(posterior.mode(), moments[:, :3])
    eps = torch.randn(2, 3, 4, 4, generator=torch_rng("cpu", "draw"))
    std = (moments[:, 3:] / 2).exp()
    assert relative_error(posterior.sample(torch_rng("cpu", "draw")), moments[:, :3] + std * eps) < 1e-6
    normal = torch.distributions.Normal(moments[:, :3], std)
    kl = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).sum(dim=(1, 2, 3))
    assert relative_error(posterior.kl(), kl) < 1e-5
    extreme = DiagonalGaussianDistribution(torch.tensor([0.0, 0.0, -99.0, 99.0]).view(1, 4, 1, 1))
    assert extreme.logvar.flatten().tolist() == [-30.0, 20.0]


def test_the_reconstruction_loss_is_its_formula() -> None:
    posterior = DiagonalGaussianDistribution(torch.full((1, 4, 2, 2), 0.5))
    truth, decoded = torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 0.2)
    loss, parts = ReconstructionLoss(kl_weight=0.1)(truth, decoded, posterior)
    kl = 8 * 0.5 * (0.25 + math.exp(0.5) - 1 - 0.5) / 48
    assert float(loss) == pytest.approx(0.2 + 0.04 + 0.1 * kl, rel=1e-5)
    assert float(parts["kl"]) == pytest.approx(kl, rel=1e-5)
    # The peak-to-peak range is 2: 10 log10(2^2 / 0.2^2) = 20 dB.
    assert float(parts["psnr"]) == pytest.approx(20, abs=1e-4)
    _, beyond = ReconstructionLoss()(truth + 1, decoded + 5, posterior)
    assert math.isinf(beyond["psnr"])  # clamped to the range before it is measured


def test_training_lowers_the_loss_on_a_picture(tmp_path: Path) -> None:
    class OnePicture(Pairs):
        def train_dataloader(self) -> torch.utils.data.DataLoader:
            return torch.utils.data.DataLoader([vars(pair(0))] * self.count, batch_size=None)

    vae = AutoencoderKL(ddconfig=SMALL["first_stage"], lossconfig=RECONSTRUCTION, embed_dim=4, learning_rate=2e-3)

    def measure() -> dict[str, torch.Tensor]:
        image = pair(0).gt_pm1
        with torch.no_grad():
            posterior = vae.encode(image)
            return vae.loss(image, vae.decode(posterior.mode()), posterior)[1]

    before = measure()
    run = trainer(tmp_path, 20)
    run.fit(vae, OnePicture(20))
    after = measure()
    assert after["loss"] < 0.7 * before["loss"]
    assert after["psnr"] > before["psnr"] + 2
    assert {"train/loss", "train/mse", "train/kl", "train/psnr", "val/psnr"} <= set(run.callback_metrics)
    assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in vae.parameters())
