"""LPIPS against torchmetrics' figures and a closed form, its weights' files, and what is said without them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from reference.lpips_distances import pictures
from reference.parity import FOLDER
from safetensors.torch import save_file

from basicsr.metrics.lpips import BACKBONES, LPIPS
from basicsr.metrics.measure import Lpips
from basicsr.utils.errors import FieldError, UserError


@pytest.mark.parametrize("net", BACKBONES)
def test_the_distances_are_those_of_torchmetrics(net: str) -> None:
    distances = LPIPS(net, random_seed=0)(*pictures())
    assert distances.shape == (2,)
    np.testing.assert_allclose(distances.numpy(), np.load(FOLDER / "lpips.npz")[net], rtol=1e-5)


def test_the_formula_by_hand() -> None:
    lpips = LPIPS("alex", random_seed=1)
    a, b = pictures()
    expected = np.zeros(2)
    x, y = ((img.double() - lpips.shift) / lpips.scale for img in (a, b))
    features = lpips.features.double()
    head = iter(lpips.heads)
    for index, layer in enumerate(features):
        x, y = layer(x), layer(y)
        if index in (1, 4, 7, 9, 11):
            unit = [z.numpy() / np.sqrt((z.numpy() ** 2).sum(1, keepdims=True) + 1e-8) for z in (x, y)]
            weights = next(head).numpy().reshape(1, -1, 1, 1)
            expected += (weights * (unit[0] - unit[1]) ** 2).sum(1).mean((1, 2))
    features.float()
    np.testing.assert_allclose(lpips(a, b).numpy(), expected, rtol=1e-5)


def test_it_is_a_frozen_distance_with_a_gradient() -> None:
    lpips = LPIPS("squeeze", random_seed=0)
    a, b = pictures()
    assert lpips(a, a).tolist() == [0, 0]
    assert torch.equal(lpips(a, b), lpips(b, a))
    b.requires_grad_(True)
    lpips(a, b).sum().backward()
    assert b.grad is not None and b.grad.isfinite().all() and b.grad.abs().max() > 0
    assert not any(parameter.requires_grad for parameter in lpips.parameters())


def test_equal_channels_of_zero_give_a_finite_gradient() -> None:
    lpips = LPIPS("alex", random_seed=0)
    a = torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1).expand(1, 3, 32, 32)  # 0 everywhere inside
    b = a.clone().requires_grad_(True)
    lpips(a, b).sum().backward()
    assert b.grad is not None and b.grad.isfinite().all()


def test_random_features_are_those_of_their_seed() -> None:
    a, b = pictures()
    first, again, other = (LPIPS("squeeze", random_seed=seed)(a, b) for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("form", ["published", "bare", "safetensors", "an LPIPS's checkpoint"])
def test_weights_are_read_from_a_file(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features = {name: value.contiguous() for name, value in LPIPS("alex", random_seed=5).features.state_dict().items()}
    file: Path | None = tmp_path / "alexnet.pth"
    assert file is not None
    if form == "published":
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
        state = {f"features.{name}": value for name, value in features.items()}
        torch.save(state | {"classifier.1.bias": torch.zeros(4)}, tmp_path / "hub/checkpoints/alexnet-owt-7be5be79.pth")
        file = None
    elif form == "bare":
        torch.save(features, file)
    elif form == "safetensors":
        file = file.with_suffix(".safetensors")
        save_file({f"features.{name}": value for name, value in features.items()}, file)
    else:
        state = {f"loss.perceptual_loss.net.slice1.{name}": value for name, value in features.items()}
        torch.save({"state_dict": state | {"loss.logvar": torch.zeros(())}, "global_step": 3}, file)
    expected = LPIPS("alex", random_seed=5)(*pictures())
    assert torch.equal(LPIPS("alex", file)(*pictures()), expected)


def test_without_weights_it_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(FieldError, match=r"vgg16-397923af.pth, VGG16's ImageNet weights.*hub/checkpoints") as error:
        LPIPS("vgg")
    assert error.value.field == "lpips_weights" and "\n" not in str(error.value)
    with pytest.raises(FieldError, match="nowhere.pth is not there: put alexnet"):
        Lpips("alex", tmp_path / "nowhere.pth")


def test_a_wrong_file_and_a_wrong_name_are_told(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    torch.save(LPIPS("squeeze", random_seed=0).features.state_dict(), file)
    with pytest.raises(FieldError, match=r"holds no AlexNet: features\.0\.weight is absent or of another shape"):
        LPIPS("alex", file)
    file.write_bytes(b"not weights")
    with pytest.raises(FieldError, match="cannot be read as weights"):
        LPIPS("alex", file)
    with pytest.raises(UserError, match="lpips_net 'vgg19' is not known: did you mean 'vgg'"):
        LPIPS("vgg19")


def test_pictures_that_are_too_small_have_none(tmp_path: Path) -> None:
    file = tmp_path / "alexnet.pth"
    torch.save(LPIPS("alex", random_seed=0).features.state_dict(), file)
    lpips = Lpips("alex", file)
    a, b = ((img[0] + 1) / 2 for img in pictures())
    assert 0 < lpips(a, b, 2) < 1
    assert np.isnan(lpips(a, b, 17))
