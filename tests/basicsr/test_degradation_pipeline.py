"""The two-stage degradation: its range of results, its alignment, and what it refuses."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage import data

from basicsr.data.degradation_pipeline import DegradationConfig, DegradationPipeline, Stage, _randomly_resized
from basicsr.utils.diffjpeg import DiffJPEG
from basicsr.utils.errors import UserError
from basicsr.utils.img_process_util import USMSharp, filter2D

BLOCK: dict[str, Any] = {
    "resize_prob": [0.2, 0.7, 0.1],
    "resize_range": [0.15, 1.5],
    "gaussian_noise_prob": 0.5,
    "noise_range": [1, 30],
    "poisson_scale_range": [0.05, 3.0],
    "gray_noise_prob": 0.4,
    "jpeg_range": [30, 95],
    "second_blur_prob": 0.8,
    "resize_prob2": [0.3, 0.4, 0.3],
    "resize_range2": [0.3, 1.2],
    "gaussian_noise_prob2": 0.5,
    "noise_range2": [1, 25],
    "poisson_scale_range2": [0.05, 2.5],
    "gray_noise_prob2": 0.4,
    "jpeg_range2": [30, 100],
    "gt_size": 512,
    "no_degradation_prob": 0.01,
}
HARMLESS: dict[str, Any] = {
    "resize_prob": [0, 0, 1],
    "gaussian_noise_prob": 1.0,
    "noise_range": [0, 0],
    "jpeg_range": [100, 100],
    "resize_prob2": [0, 0, 1],
    "gaussian_noise_prob2": 1.0,
    "noise_range2": [0, 0],
    "jpeg_range2": [100, 100],
    "no_degradation_prob": 0.0,
}


def pipeline(**changes: Any) -> DegradationPipeline:
    return DegradationPipeline(DegradationConfig.from_mapping(BLOCK, **changes))


def blurs(count: int, width: float = 1.0) -> torch.Tensor:
    """(count, 21, 21) Gaussians; width 0 is the identity."""
    x = torch.arange(-10.0, 11.0)
    row = torch.exp(-(x**2) / (2 * width**2)) if width else (x == 0).float()
    kernel = row[:, None] * row
    return (kernel / kernel.sum()).expand(count, 21, 21)


def degraded(gt: torch.Tensor, seed: int = 0, blur: float = 1.0, **changes: Any) -> tuple[torch.Tensor, torch.Tensor]:
    kernel = blurs(len(gt), blur)
    return pipeline(**changes)(gt, kernel, kernel, kernel, torch.Generator().manual_seed(seed))


def photographs() -> torch.Tensor:
    """(2, 3, 128, 128)."""
    crops = [data.astronaut()[:128, 160:288], data.chelsea()[60:188, 120:248]]
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(-10 * (a - b).square().mean().log10())


def test_results_are_pictures_of_gts_size_and_range() -> None:
    gt = photographs()
    for seed in range(12):
        lq, sharpened = degraded(gt, seed, no_degradation_prob=0.0)
        for img in (lq, sharpened):
            assert img.shape == gt.shape and img.dtype == gt.dtype
            assert img.min() >= 0 and img.max() <= 1
        assert 12 < psnr(lq, gt) < 35  # clearly worse, and still that picture
        assert torch.equal(sharpened, USMSharp()(gt))


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (8, 8), (32, 32), (33, 17)])
def test_no_size_is_too_small(shape: tuple[int, int]) -> None:
    gt = torch.rand(2, 3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for seed in range(20):
        lq, _ = degraded(gt, seed)
        assert lq.shape == gt.shape and lq.dtype == torch.float64 and lq.isfinite().all()


def test_the_generator_decides_everything() -> None:
    gt = photographs()
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]  # a tuple, as legacy=True is the default
    first = [degraded(gt, seed)[0] for seed in range(4)]
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # type: ignore[index]  # a tuple, as legacy=True is the default
    torch.rand(3)
    np.random.rand(3)
    assert all(torch.equal(degraded(gt, seed)[0], lq) for seed, lq in enumerate(first))
    assert len({float(psnr(lq, gt)) for lq in first}) == 4
    run, kernel, rng = pipeline(no_degradation_prob=0.0), blurs(2), torch.Generator().manual_seed(0)
    assert not torch.equal(run(gt, kernel, kernel, kernel, rng)[0], run(gt, kernel, kernel, kernel, rng)[0])


def test_without_damage_lq_is_gt() -> None:
    lq, gt = degraded(photographs(), blur=0, **HARMLESS, sf=1)
    assert psnr(lq, gt) > 33  # what remains is the chroma of JPEG at half resolution, twice
    gray = photographs().mean(1, keepdim=True).expand(-1, 3, -1, -1)
    lq, gt = degraded(gray, blur=0, **HARMLESS, sf=1, use_usm=False)
    assert psnr(lq, gt) > 48
    assert torch.equal(gt, gray)


@pytest.mark.parametrize("prob", [[1, 0, 0], [0, 1, 0]])
def test_resizing_shifts_nothing(prob: list[int]) -> None:
    """A ramp stays the same ramp, away from its ends, through all resizes, modes and orders."""
    ramp = torch.linspace(0.2, 0.8, 128).expand(1, 3, 128, 128)
    for seed in range(8):
        changes = HARMLESS | {"resize_prob": prob, "resize_prob2": prob, "resize_range": [0.6, 1.5]}
        changes |= {"resize_range2": [0.6, 1.2], "use_usm": False, "sf": 4}
        for gt in (ramp, ramp.mT):
            lq, _ = degraded(gt, seed, blur=0, **changes)
            shift = ((lq - gt)[..., 24:-24, 24:-24]).mean() / (0.6 / 127)
            assert abs(float(shift)) < 0.25  # pixels of GT


def test_no_degradation_prob() -> None:
    lq, gt = degraded(photographs(), no_degradation_prob=1.0)
    assert torch.equal(lq, gt)
    tiny = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    same = [torch.equal(*degraded(tiny, seed, no_degradation_prob=0.3)) for seed in range(200)]
    assert np.mean(same) == pytest.approx(0.3, abs=0.1)


@pytest.mark.parametrize(
    "worse",
    [
        {"noise_range": [40, 40]},
        {"gaussian_noise_prob": 0.0, "poisson_scale_range": [3, 3]},
        {"jpeg_range": [5, 5]},
        {"resize_prob": [0, 1, 0], "resize_range": [0.05, 1]},
        {"noise_range2": [40, 40]},
        {"gaussian_noise_prob2": 0.0, "poisson_scale_range2": [3, 3]},
        {"jpeg_range2": [5, 5]},
        {"resize_prob2": [0, 1, 0], "resize_range2": [0.05, 1]},
        {"sf": 8},
    ],
)
def test_every_option_takes_part(worse: dict[str, Any]) -> None:
    gt = photographs()
    mild, _ = degraded(gt, blur=0, **HARMLESS)
    bad, _ = degraded(gt, blur=0, **(HARMLESS | worse))
    assert psnr(bad, gt) < psnr(mild, gt) - 0.5


def test_each_kernel_takes_part_in_its_own_sample() -> None:
    gt, sharp = photographs(), blurs(2, 0)
    mixed = torch.cat([blurs(1, 0), blurs(1, 5)])
    run = pipeline(**HARMLESS | {"second_blur_prob": 1.0})

    def lq(*kernels: torch.Tensor) -> torch.Tensor:
        return run(gt, *kernels, torch.Generator().manual_seed(0))[0]  # type: ignore[call-arg,arg-type]  # mypy does not count what * gives

    plain = lq(sharp, sharp, sharp)
    for place in range(3):
        blurred = lq(*[mixed if i == place else sharp for i in range(3)])
        torch.testing.assert_close(blurred[0], plain[0])
        assert psnr(blurred[1], gt[1]) < psnr(plain[1], gt[1]) - 1


def test_second_blur_prob() -> None:
    changes = HARMLESS | {"second_blur_prob": 0.0}
    gt, sharp = photographs(), blurs(2, 0)

    def lq(kernel2: torch.Tensor) -> torch.Tensor:
        return pipeline(**changes)(gt, sharp, kernel2, sharp, torch.Generator().manual_seed(0))[0]

    assert torch.equal(lq(blurs(2, 5)), lq(sharp))


def test_jpeg_comes_last_in_half_of_the_batches_and_first_in_the_others() -> None:
    """With all else harmless and sf 1, LQ is the one closed form or the other: blur(jpeg(gt)) or jpeg(blur(gt))."""
    gt, sharp, blur = photographs()[:, :, :32, :32], blurs(2, 0), blurs(2, 2)
    run = pipeline(**HARMLESS | {"second_blur_prob": 0.0, "jpeg_range2": [5, 5], "sf": 1, "use_usm": False})
    jpeg = DiffJPEG(differentiable=False)
    first = jpeg(filter2D(gt, sharp), 100)
    forms = {"filter": filter2D(jpeg(first, 5), blur), "jpeg": jpeg(filter2D(first, blur), 5)}
    assert (forms["filter"] - forms["jpeg"]).abs().mean() > 0.012
    last = []
    for seed in range(200):
        lq, _ = run(gt, sharp, sharp, blur, torch.Generator().manual_seed(seed))
        distance = {name: float((lq - form).abs().mean()) for name, form in forms.items()}
        nearest = min(distance, key=distance.__getitem__)
        assert distance[nearest] < 0.004, distance  # 8-bit rounding, and a JPEG step that flips here and there
        last.append(nearest)
    assert 80 <= last.count("jpeg") <= 120  # 200 fair coins: 100 with a standard deviation of 7
    assert sum(a != b for a, b in zip(last, last[1:], strict=False)) > 60  # and not in blocks


def test_lq_is_rounded_to_8_bits_before_it_is_enlarged() -> None:
    """At sf 1 nothing is enlarged, so that LQ has 8-bit levels only, as a file would; GT stays as it is."""
    gt = photographs()[:, :, :32, :32] * 0.7531
    lq, _ = degraded(gt, **HARMLESS, sf=1, use_usm=False)
    assert (lq * 255 - (lq * 255).round()).abs().max() < 1e-3 < (gt * 255 - (gt * 255).round()).abs().max()


@pytest.mark.parametrize("stage", ["", "2"])
def test_every_way_to_resize_occurs_alike(stage: str) -> None:
    """The stage enlarges a ramp of two pixels four times: each mode gives a row of its own, blurred by nothing."""
    row = torch.tensor([0.2, 0.8])
    changes = HARMLESS | {"sf": 1, "use_usm": False, "gt_size": None} | {f"resize_prob{stage}": [1, 0, 0]}
    run = pipeline(**changes)
    forms = {m: F.interpolate(row.expand(1, 3, 2, 2), size=(8, 8), mode=m) for m in ("area", "bilinear", "bicubic")}
    options = Stage(**{f.name: getattr(run.config, f.name + stage) for f in dataclasses.fields(Stage)})
    host, seen = np.random.default_rng(0), []
    for _ in range(300):
        got = _randomly_resized(row.expand(1, 3, 2, 2), (8, 8), dataclasses.replace(options, resize_range=(1, 1)), host)
        seen.append(next(mode for mode, form in forms.items() if torch.allclose(got, form, atol=1e-5)))
    assert all(70 < seen.count(mode) < 130 for mode in forms), seen


def test_maps_are_cropped_with_their_pictures() -> None:
    gt = photographs()
    maps = (gt.mean(1, keepdim=True) > 0.5).float()
    for seed, whole in ((0, 0.0), (1, 0.0), (2, 1.0)):
        run = pipeline(**HARMLESS | {"gt_size": 50, "use_usm": False, "no_degradation_prob": whole})
        rng = torch.Generator().manual_seed(seed)
        lq, crop, cropped = run.with_maps(gt, blurs(2), blurs(2), blurs(2), rng, maps)
        assert lq.shape == crop.shape == (2, 3, 50, 50)
        assert torch.equal(cropped, (crop.mean(1, keepdim=True) > 0.5).float())
        same = run(gt, blurs(2), blurs(2), blurs(2), torch.Generator().manual_seed(seed))
        assert torch.equal(lq, same[0]) and torch.equal(crop, same[1])


def test_crop_to_gt_size_takes_the_same_square_of_both() -> None:
    whole = torch.stack(torch.meshgrid(torch.linspace(0, 1, 64), torch.linspace(0, 1, 96), indexing="ij"))
    gt = torch.cat([whole, whole[:1]])[None]
    corners = set()
    for seed in range(6):
        lq, crop = degraded(gt, seed, blur=0, **HARMLESS | {"gt_size": 40, "sf": 1, "use_usm": False})
        assert lq.shape == crop.shape == (1, 3, 40, 40)
        assert (lq - crop).abs().mean() < 0.01
        corners.add((round(float(crop[0, 0, 0, 0]) * 63), round(float(crop[0, 1, 0, 0]) * 95)))
    assert len(corners) > 3 and all(top <= 24 and left <= 56 for top, left in corners)
    lq, crop = degraded(gt, 0, gt_size=80)  # larger than the height only: the width is cropped
    assert lq.shape == crop.shape == (1, 3, 64, 80)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"jpeg_rang": [30, 95]}, "^jpeg_rang is not known; did you mean 'jpeg_range'"),
        ({"resize_prob": [0.5, 0.5]}, "^resize_prob is .*give 3 probabilities, for up, down, keep"),
        ({"resize_range2": [1.2, 0.3]}, "^resize_range2 .*must not be above"),
        ({"resize_range": [0.3, 0.9]}, "^resize_range .*must lie in it"),
        ({"jpeg_range": [0, 95]}, "^jpeg_range is 0: give a number from 1 to 100"),
        ({"gray_noise_prob2": 1.5}, "^gray_noise_prob2 is 1.5: give a number from 0 to 1"),
        ({"noise_range": [-1, 5]}, "^noise_range is -1"),
        ({"gt_size": 0}, "^gt_size is 0"),
        ({"sf": 0}, "^sf is 0"),
        ({"use_usm": "no"}, "^use_usm is 'no': give true or false"),
        ({"no_degradation_prob": "often"}, "^no_degradation_prob is 'often': give a number"),
    ],
)
def test_bad_config(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        pipeline(**changes)


def test_missing_keys_are_named() -> None:
    short = {k: v for k, v in BLOCK.items() if k not in ("noise_range", "jpeg_range2")}
    with pytest.raises(UserError, match="^degradation lacks noise_range, jpeg_range2"):
        DegradationConfig.from_mapping(short)
    with pytest.raises(UserError, match="degradation is None"):
        DegradationConfig.from_mapping(None)  # type: ignore[arg-type]  # wrong on purpose
