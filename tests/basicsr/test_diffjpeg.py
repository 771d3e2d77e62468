"""JPEG against reference arrays and against a library's files."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from basicsr.utils.diffjpeg import DiffJPEG

REFERENCE = np.load(Path(__file__).parent / "data" / "pixel_ops.npz")
PICTURE = torch.from_numpy(REFERENCE["picture"]).float() / 255
QUALITY = torch.from_numpy(REFERENCE["jpeg_quality"])
JPEG = DiffJPEG(differentiable=False)


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(-10 * (a - b).square().mean().log10())


def test_against_reference() -> None:
    np.testing.assert_allclose(JPEG(PICTURE, QUALITY)[..., ::2, ::2], REFERENCE["jpeg"], atol=1e-5)
    odd = JPEG(PICTURE[..., :57, :83], QUALITY)
    np.testing.assert_allclose(odd[..., 40:, 60:], REFERENCE["jpeg_odd_corner"], atol=1e-5)


@pytest.mark.parametrize("quality", [20, 60, 95])
def test_close_to_a_real_file(quality: int) -> None:
    from skimage import data

    picture = np.ascontiguousarray(data.astronaut()[:128, 128:256])
    subsampling = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420]
    _, file = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality, *subsampling])
    decoded = np.asarray(cv2.imdecode(file, cv2.IMREAD_COLOR))[..., ::-1].copy()
    original, real = (torch.from_numpy(p).permute(2, 0, 1)[None].float() / 255 for p in (picture, decoded))
    ours = JPEG(original, float(quality))
    assert psnr(ours, original) == pytest.approx(psnr(real, original), abs=1)  # as much is lost
    assert psnr(ours, real) > psnr(real, original) + 1  # and nearly the same is


def test_each_sample_has_its_own_quality() -> None:
    both = JPEG(PICTURE, QUALITY)
    for i in range(2):
        torch.testing.assert_close(both[i : i + 1], JPEG(PICTURE[i : i + 1], float(QUALITY[i])))


def test_loss_grows_as_quality_falls() -> None:
    losses = [float((JPEG(PICTURE, q) - PICTURE).square().mean()) for q in (100.0, 80.0, 50.0, 20.0, 1.0)]
    assert losses == sorted(losses) and len(set(losses)) == 5
    assert np.isfinite(losses).all()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 30), (16, 17)])
def test_any_size_and_dtype(height: int, width: int) -> None:
    out = JPEG(PICTURE[..., :height, :width].double(), QUALITY)
    assert out.shape == (2, 3, height, width) and out.dtype == torch.float64
    assert out.min() >= 0 and out.max() <= 1


def test_gradient_only_if_differentiable() -> None:
    for differentiable in (False, True):
        picture = PICTURE.clone().requires_grad_()
        DiffJPEG(differentiable=differentiable)(picture, QUALITY).square().mean().backward()
        assert picture.grad is not None and picture.grad.isfinite().all()
        assert bool(picture.grad.abs().sum() > 0) == differentiable


def test_smooth_rounding_stays_near_rounding() -> None:
    soft = DiffJPEG(differentiable=True)(PICTURE, QUALITY)
    assert psnr(soft, JPEG(PICTURE, QUALITY)) > psnr(soft, PICTURE)


def test_nothing_in_the_state_dict() -> None:
    assert not JPEG.state_dict() and not list(JPEG.parameters())
