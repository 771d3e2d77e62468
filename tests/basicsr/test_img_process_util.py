"""Filters against reference arrays, OpenCV and NumPy."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from basicsr.utils.img_process_util import USMSharp, filter2D, reflect_pad

REFERENCE = np.load(Path(__file__).parent / "data" / "pixel_ops.npz")
PICTURE = torch.from_numpy(REFERENCE["picture"]).float() / 255


def test_filter2d_against_reference() -> None:
    got = filter2D(PICTURE, torch.from_numpy(REFERENCE["filter2d_kernels"]))
    np.testing.assert_allclose(got[..., ::2, ::2], REFERENCE["filter2d"], atol=1e-5)


def test_one_kernel_for_all_against_opencv() -> None:
    kernel = np.random.default_rng(0).random((5, 9)).astype(np.float32)
    got = filter2D(PICTURE[:1], torch.from_numpy(kernel))[0].permute(1, 2, 0)
    picture = PICTURE[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(got, cv2.filter2D(picture, -1, kernel, borderType=cv2.BORDER_REFLECT_101), rtol=1e-4)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5), (2, 3), (8, 8), (11, 4), (30, 40)])
def test_reflection_reaches_any_pad(height: int, width: int) -> None:
    img = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    want = np.pad(img.numpy(), ((0, 0), (0, 0), (10, 10), (7, 7)), mode="reflect")
    assert np.array_equal(reflect_pad(img, 10, 7), want)


def test_filter2d_keeps_dtype_and_gradient() -> None:
    img = torch.rand(1, 3, 6, 6, dtype=torch.float64, requires_grad=True)
    out = filter2D(img, torch.ones(21, 21) / 441)
    assert out.dtype == torch.float64
    out.sum().backward()
    assert img.grad is not None and img.grad.abs().sum() > 0


@pytest.mark.parametrize("shape", [(4, 4), (3, 5, 5), (2, 2, 5, 5)])
def test_filter2d_refuses_what_it_cannot_centre_or_assign(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="filter2D: kernel"):
        filter2D(torch.rand(2, 3, 8, 8), torch.ones(shape))


def test_usm_against_reference() -> None:
    np.testing.assert_allclose(USMSharp()(PICTURE)[..., ::2, ::2], REFERENCE["usm"], atol=2e-5)


def test_usm_kernel_is_opencvs_and_not_in_the_state_dict() -> None:
    for radius, sigma in ((50, 0.0), (21, 0.0), (10, 2.5)):
        usm = USMSharp(radius, sigma)
        side = radius if radius % 2 else radius + 1
        np.testing.assert_allclose(usm.kernel, cv2.getGaussianKernel(side, sigma)[:, 0], atol=1e-7)
        assert not usm.state_dict()


def test_usm_leaves_weak_detail_alone_and_stays_in_range() -> None:
    step = torch.zeros(1, 3, 64, 64)
    step[..., 32:] = 1
    weak = 0.5 + 9 / 255 * (step - 0.5)
    sharp = USMSharp()
    torch.testing.assert_close(sharp(weak), weak)
    strong = 0.2 + 0.6 * step
    out = sharp(strong)
    assert out.min() >= 0 and out.max() <= 1
    assert out[..., 33].mean() > 0.85 and out[..., 31].mean() < 0.15
