"""Every metric against an independent implementation on 20 crops of photographs, and against closed forms."""

import math
from collections.abc import Callable

import cv2
import numpy as np
import pytest
import skimage.color
import skimage.data
import skimage.filters
import skimage.metrics
import skimage.morphology
import torch
from torch import Tensor

from basicsr.metrics import edge_metrics, psnr_ssim
from basicsr.metrics.edge_metrics import edge_map, edge_precision_recall_f1, edge_psnr, gradient_psnr, region_errors
from basicsr.metrics.measure import measure
from basicsr.metrics.psnr_ssim import PSNR_CAP, as_8_bit, cropped, luma, ms_ssim, psnr, ssim
from basicsr.metrics.table import METRICS

Array = np.ndarray
BORDER = 4


def crops() -> list[tuple[Array, Array]]:
    """20 crops (H, W, 3) uint8 of five photographs, each with a copy that is blurred or noisy."""
    rng = np.random.default_rng(5)
    pairs = []
    for photo in (skimage.data.astronaut(), skimage.data.coffee(), skimage.data.chelsea(), skimage.data.rocket()):
        for _ in range(5):
            top, left = (int(rng.integers(side - size)) for side, size in zip(photo.shape, (203, 190), strict=False))
            gt = photo[top : top + 203, left : left + 190]
            noisy = gt + rng.normal(0, rng.uniform(1, 12), gt.shape)
            sr = cv2.GaussianBlur(np.clip(noisy, 0, 255), (0, 0), rng.uniform(0.3, 1.5))
            pairs.append((sr.round().astype(np.uint8), np.ascontiguousarray(gt)))
    return pairs


CROPS = crops()


def tensor_01(pixels: Array) -> Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1).double() / 255


def inner(values: Array) -> Array:
    return values[BORDER:-BORDER, BORDER:-BORDER]


def luma_of(pixels: Array) -> Array:
    """scikit-image's studio-swing luma in [16, 235], cropped."""
    return inner(skimage.color.rgb2ycbcr(pixels)[..., 0])


def canny_of(pixels: Array) -> Array:
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    return inner(cv2.Canny(cv2.GaussianBlur(grey, (5, 5), 1.4), 100, 200) > 0)


def psnr_of(a: Array, b: Array, peak: float) -> float:
    return skimage.metrics.peak_signal_noise_ratio(b, a, data_range=peak)


def ssim_of(a: Array, b: Array, **more: int) -> float:
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255.0, **more}
    return skimage.metrics.structural_similarity(a.astype(float), b.astype(float), **options)


def ms_ssim_of(a: Array, b: Array) -> float:
    """Wang et al. 2003, written out."""
    bell = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))

    def mean(x: Array) -> Array:
        for axis in (0, 1):
            x = np.apply_along_axis(np.convolve, axis, x, bell / bell.sum(), mode="valid")
        return x

    product, c1, c2 = 1.0, (0.01 * 255) ** 2, (0.03 * 255) ** 2
    for scale, weight in enumerate([0.0448, 0.2856, 0.3001, 0.2363, 0.1333]):
        if scale:
            a, b = (x[: x.shape[0] // 2 * 2, : x.shape[1] // 2 * 2] for x in (a, b))
            a, b = (sum(x[i::2, j::2] for i in (0, 1) for j in (0, 1)) / 4 for x in (a, b))
        contrast = (2 * (mean(a * b) - mean(a) * mean(b)) + c2) / (
            mean(a * a) - mean(a) ** 2 + mean(b * b) - mean(b) ** 2 + c2
        )
        bright = (2 * mean(a) * mean(b) + c1) / (mean(a) ** 2 + mean(b) ** 2 + c1) if scale == 4 else 1
        product *= float(np.mean(bright * contrast)) ** weight
    return product


def overlap_of(pred: Array, true: Array) -> tuple[float, float, float]:
    """Pixel by pixel, through the Chebyshev distance to the nearest edge of the other map."""
    to_true, to_pred = (cv2.distanceTransform((~edges).astype(np.uint8), cv2.DIST_C, 3) for edges in (true, pred))
    precision, recall = float((to_true[pred] <= 1).mean()), float((to_pred[true] <= 1).mean())
    return precision, recall, 2 / (1 / precision + 1 / recall)


def sobel_of(pixels: Array) -> Array:
    return skimage.filters.sobel(luma_of(pixels) / 255, mode="mirror")


def regions_of(sr: Array, gt: Array) -> tuple[float, float]:
    near = skimage.morphology.dilation(canny_of(gt), np.ones((3, 3)))
    squared = (luma_of(sr) - luma_of(gt)) ** 2
    return math.sqrt(squared[near].mean()), math.sqrt(squared[~near].mean())


REFERENCES: dict[str, Callable[[Array, Array], float]] = {
    "psnr_y": lambda sr, gt: psnr_of(luma_of(sr), luma_of(gt), 255),
    "psnr_rgb": lambda sr, gt: psnr_of(inner(sr), inner(gt), 255),
    "ssim_y": lambda sr, gt: ssim_of(luma_of(sr), luma_of(gt)),
    "ssim_rgb": lambda sr, gt: ssim_of(inner(sr), inner(gt), channel_axis=2),
    "ms_ssim": lambda sr, gt: ms_ssim_of(luma_of(sr), luma_of(gt)),
    "edge_precision": lambda sr, gt: overlap_of(canny_of(sr), canny_of(gt))[0],
    "edge_recall": lambda sr, gt: overlap_of(canny_of(sr), canny_of(gt))[1],
    "edge_f1": lambda sr, gt: overlap_of(canny_of(sr), canny_of(gt))[2],
    "edge_psnr": lambda sr, gt: psnr_of(canny_of(sr).astype(float), canny_of(gt).astype(float), 1),
    "gradient_psnr": lambda sr, gt: psnr_of(sobel_of(sr), sobel_of(gt), 1),
    "rmse_edges": lambda sr, gt: regions_of(sr, gt)[0],
    "rmse_flat": lambda sr, gt: regions_of(sr, gt)[1],
}


@pytest.fixture(scope="module")
def measured() -> list[dict[str, float]]:
    return [measure(tensor_01(sr), tensor_01(gt), BORDER) for sr, gt in CROPS]


@pytest.mark.parametrize("name", [name for name in METRICS if name != "lpips"])
def test_a_metric_agrees_with_an_independent_one(name: str, measured: list[dict[str, float]]) -> None:
    expected = [REFERENCES[name](sr, gt) for sr, gt in CROPS]
    assert [each[name] for each in measured] == pytest.approx(expected, rel=1e-6)
    assert len(set(np.round(expected, 6))) >= 15  # the pictures are told apart


def test_equal_pictures_are_at_the_top() -> None:
    same = measure(*[tensor_01(CROPS[0][1])] * 2, BORDER)
    for name, value in same.items():
        metric = METRICS[name]
        top = PSNR_CAP if metric.unit == "dB" else 1 if metric.higher_is_better else 0
        assert value == pytest.approx(top), name


def test_psnr_of_a_constant_difference() -> None:
    grey = torch.full((3, 16, 16), 0.5)
    assert psnr(grey, grey + 0.1) == pytest.approx(20)
    assert psnr(luma(grey), luma(grey + 0.1)) == pytest.approx(20 - 20 * math.log10(219 / 255), abs=1e-5)
    assert luma(torch.ones(3, 1, 1)).item() == pytest.approx(235 / 255)
    assert luma(torch.zeros(3, 1, 1)).item() == pytest.approx(16 / 255)


def test_ssim_of_flat_pictures() -> None:
    a, b = 0.2, 0.6
    expected = (2 * a * b + 1e-4) / (a * a + b * b + 1e-4)
    assert ssim(torch.full((1, 20, 20), a), torch.full((1, 20, 20), b)) == pytest.approx(expected)
    flat = ms_ssim(torch.full((1, 176, 176), a), torch.full((1, 176, 176), b))
    assert flat == pytest.approx(expected**0.1333)


def test_what_a_picture_is_too_small_for_is_nan() -> None:
    small = measure(torch.rand(3, 18, 18), torch.rand(3, 18, 18), BORDER)
    undefined = {name for name, value in small.items() if math.isnan(value)}
    assert {"ssim_y", "ssim_rgb", "ms_ssim"} == undefined - {"rmse_edges", "rmse_flat"}
    assert math.isnan(ms_ssim(torch.rand(1, 175, 300), torch.rand(1, 175, 300)))


def test_rounding_and_cropping() -> None:
    assert as_8_bit(torch.tensor([-1.0, 0.1, 2.0])).mul(255).tolist() == [0, 26, 255]
    assert cropped(torch.zeros(3, 20, 9), 4).shape == (3, 12, 1)
    assert cropped(torch.zeros(3, 5, 6), 0).shape == (3, 5, 6)
    assert cropped(torch.zeros(3, 5, 6), 9).shape == (3, 1, 2)


def line(column: int) -> Array:
    edges = np.zeros((10, 20), bool)
    edges[:, column] = True
    return edges


def test_overlap_in_closed_form() -> None:
    assert edge_precision_recall_f1(line(5), line(6)) == (1, 1, 1)
    assert edge_precision_recall_f1(line(5), line(6), tolerance=0) == (0, 0, 0)
    assert edge_precision_recall_f1(line(5), line(7)) == (0, 0, 0)
    assert edge_precision_recall_f1(line(5), line(7), tolerance=2) == (1, 1, 1)
    both = line(5) | line(15)
    assert edge_precision_recall_f1(both, line(5)) == pytest.approx((0.5, 1, 2 / 3))
    assert edge_precision_recall_f1(line(5), both) == pytest.approx((1, 0.5, 2 / 3))


def test_noise_does_not_buy_f1() -> None:
    everywhere = np.ones((10, 20), bool)
    precision, recall, f1 = edge_precision_recall_f1(everywhere, line(5))
    assert recall == 1 and precision == pytest.approx(3 / 20) and f1 < 0.3


def test_maps_without_edges_have_defined_values() -> None:
    none = np.zeros((10, 20), bool)
    assert edge_precision_recall_f1(none, none) == (1, 1, 1)
    assert edge_precision_recall_f1(none, line(5)) == edge_precision_recall_f1(line(5), none) == (0, 0, 0)
    assert edge_psnr(none, none) == PSNR_CAP
    assert edge_psnr(none, line(5)) == pytest.approx(10 * math.log10(20))
    assert edge_psnr(none, ~none) == 0
    flat = region_errors(torch.zeros(1, 10, 20), torch.full((1, 10, 20), 0.5), none)
    assert math.isnan(flat.edges) and flat.flat == 0.25 and flat.edge_share == 0
    sky = measure(torch.full((3, 40, 40), 0.4), torch.full((3, 40, 40), 0.5), BORDER)
    assert sky["edge_f1"] == 1 and math.isnan(sky["rmse_edges"]) and sky["rmse_flat"] > 0


def test_regions_add_up_to_the_whole() -> None:
    sr, gt = (tensor_01(picture) for picture in CROPS[0])
    parts = region_errors(sr, gt, edge_map(gt))
    whole = float((sr - gt).square().mean())
    assert parts.edge_share * parts.edges + (1 - parts.edge_share) * parts.flat == pytest.approx(whole)
    assert 0 < parts.edge_share < 1


def test_gradient_of_a_ramp() -> None:
    ramp = torch.linspace(0, 1, 11, dtype=torch.float64).expand(1, 7, 11)
    magnitude = edge_metrics.gradient_magnitude(ramp)
    assert magnitude[0, 3, 5].item() == pytest.approx(0.2 / math.sqrt(2))  # central difference over two pixels
    assert gradient_psnr(cropped(ramp, 1), cropped(ramp, 1) + 0.3) == PSNR_CAP  # brightness leaves gradients alone


def test_sizes_must_agree() -> None:
    for metric in (edge_psnr, edge_precision_recall_f1):
        with pytest.raises(ValueError, match=r"different sizes.*\(10, 20\).*\(10, 19\)"):
            metric(line(5), line(5)[:, 1:])
    with pytest.raises(ValueError, match="tolerance"):
        edge_precision_recall_f1(line(5), line(5), tolerance=-1)


def test_every_metric_is_explained() -> None:
    assert list(measure(torch.rand(3, 16, 16), torch.rand(3, 16, 16), 0)) == [n for n in METRICS if n != "lpips"]
    assert psnr_ssim.SSIM_WINDOW == 11
