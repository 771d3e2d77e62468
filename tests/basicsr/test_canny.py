from typing import Any

import cv2
import numpy as np
import pytest
import torch
from skimage import data

from basicsr.utils import canny
from basicsr.utils.edge_utils import EdgeMapGenerator
from basicsr.utils.errors import UserError
from benchmarks import canny_exactness, canny_speed


@pytest.fixture(scope="module")
def photos() -> torch.Tensor:
    """uint8 (4, 3, 96, 120): parts of two photographs, one as it is and once darkened, and one that is all noise."""
    cat, cup = data.chelsea()[60:156, 100:220], data.coffee()[120:216, 200:320]
    noise = np.random.default_rng(3).integers(0, 256, cat.shape, dtype=np.uint8)
    return torch.from_numpy(np.stack([cat, cup // 3, cup, noise])).permute(0, 3, 1, 2).contiguous()


def maps(images: torch.Tensor, backend: str, input_format: str = "RGB", **settings: Any) -> np.ndarray:
    generator = EdgeMapGenerator(backend=backend, **settings)
    return generator.generate_from_tensor(images, input_format, normalize_range=(0, 255))[:, 0].numpy() / 255


def test_random_pictures_match_opencv_at_every_step() -> None:
    for step, count in canny_exactness.compare(400, 7, "cpu", largest=(192, 256)).items():
        assert count["differing"] == 0, step
        assert count["above 0"] > 10_000, step


def test_the_comparison_finds_a_wrong_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    right = canny.edges

    def wrong(grey: torch.Tensor, low: float, high: float) -> torch.Tensor:
        found = right(grey, low, high)
        found[0, 0, 0] ^= True
        return found

    monkeypatch.setattr(canny, "edges", wrong)
    counts = canny_exactness.compare(4, 0, "cpu", largest=(24, 24))
    assert counts["canny"]["differing"] > 0 and counts["map"]["differing"] > 0 and counts["blur"]["differing"] == 0


@pytest.mark.parametrize("mode", ["fixed", "median"])
@pytest.mark.parametrize("kernel_size", [3, 5, 21])
def test_pictures_smaller_than_the_kernels(mode: str, kernel_size: int) -> None:
    settings: dict[str, Any] = {
        "threshold_mode": mode,
        "gaussian_kernel_size": kernel_size,
        "low_threshold": 8,
        "high_threshold": 30,
    }
    rng, found = np.random.default_rng(kernel_size), 0.0
    for height, width in [(1, 1), (1, 2), (2, 1), (1, 40), (40, 1), (2, 2), (2, 9), (3, 3), (3, 4), (5, 3), (4, 64)]:
        for closing in (0, 3, 7):
            images = torch.from_numpy(rng.choice([0, 90, 255], (6, 3, height, width)))
            want = maps(images, "opencv", morphology_kernel_size=closing, **settings)
            np.testing.assert_array_equal(maps(images, "torch", morphology_kernel_size=closing, **settings), want)
            found += want.sum()
    assert found > 100


@pytest.mark.parametrize("side", [64, 300])
def test_a_long_spiral_is_followed_to_its_end(side: int) -> None:
    picture = canny_exactness.spiral(side, side, 6, np.full(3, 150))[..., 0]
    middle = slice(side // 2 - 1, side // 2 + 2)
    picture[middle, middle] = 255  # the only place that is strong
    low, high = 60, 900
    want = cv2.Canny(picture, low, high) > 0
    seeds = cv2.Canny(picture, high, high) > 0
    assert 0 < seeds.sum() < 10 and want.sum() > side**2 / 8  # all else is reached only along the spiral
    got = canny.edges(torch.from_numpy(picture)[None], low, high)[0].numpy()
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("density", [0.3, 0.41, 0.5])
def test_hysteresis_finds_whole_components_of_tangled_masks(density: float) -> None:
    # 0.41: where single components begin to span the picture, with the longest detours.
    rng = np.random.default_rng(0)
    for side in (2, 9, 40, 200):
        weak = rng.random((12, side, side)) < density
        strong = weak & (rng.random(weak.shape) < rng.choice([0.001, 0.01, 0.1]))
        got = canny._hysteresis(torch.from_numpy(weak), torch.from_numpy(strong)).numpy()
        for mask, seeds, found in zip(weak, strong, got, strict=True):
            labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[1]
            np.testing.assert_array_equal(found, mask & np.isin(labels, labels[seeds]))


def test_pictures_of_a_batch_do_not_touch() -> None:
    # Strong at its right end above, weak at its left end and one row further below: neighbours in memory only.
    strong, weak = torch.zeros(2, 16, 16, dtype=torch.int32)
    strong[:, 13:] = 200
    weak[:, :3] = 40
    batch = torch.stack([strong, weak, strong])
    got = canny.edges(batch, 100, 400)
    assert got[0].any() and got[2].any() and not got[1].any()
    np.testing.assert_array_equal(
        canny.edges(batch[1:2], 100, 150)[0], cv2.Canny(weak.numpy().astype(np.uint8), 100, 150) > 0
    )


def test_thresholds_are_floored_in_either_order_and_exclusive(photos: torch.Tensor) -> None:
    grey = canny.rgb_to_grey(photos)
    seen = set()
    for low, high in [(0, 0), (99.999999999, 200), (100, 200), (100.9, 200.9), (230, 101), (-3.5, 50), (0.2, 3000)]:
        got = canny.edges(grey, low, high).numpy()
        for picture, found in zip(grey.numpy().astype(np.uint8), got, strict=True):
            np.testing.assert_array_equal(found, cv2.Canny(picture, low, high) > 0)
        seen.add(int(got.sum()))
    assert len(seen) == 6  # of the seven only 100 and 100.9 mean the same
    # A step of 25 levels has magnitude 100 on both sides: above 99, not above 100.
    step = torch.zeros(1, 8, 8, dtype=torch.int32)
    step[:, :, 4:] = 25
    assert canny.edges(step, 99, 99).sum() == 8 and not canny.edges(step, 100, 100).any()


def test_each_picture_has_its_own_thresholds(photos: torch.Tensor) -> None:
    grey = canny.rgb_to_grey(photos)
    low, high = torch.tensor([20.0, 50, 300, 90]).view(-1, 1, 1), torch.tensor([60.0, 50, 100, 250]).view(-1, 1, 1)
    got = canny.edges(grey, low, high)
    for i in range(len(grey)):
        alone = canny.edges(grey[i : i + 1], float(low[i]), float(high[i]))[0]
        assert alone.any() and torch.equal(got[i], alone)


def test_median() -> None:
    rng = np.random.default_rng(0)
    for shape in [(5, 1, 1), (3, 3, 5), (4, 8, 6), (1, 2, 1)]:
        for levels in (2, 9, 256):
            pictures = rng.integers(256 - levels, 256, shape, dtype=np.uint8)
            want = np.median(pictures, axis=(1, 2), keepdims=True)
            np.testing.assert_array_equal(canny.median(torch.from_numpy(pictures)).numpy(), want)


def test_kernel_is_opencvs_for_any_size_and_sigma() -> None:
    rng = np.random.default_rng(1)
    for size in range(3, 72, 2):
        for sigma in (0.01, *np.exp(rng.uniform(np.log(0.05), np.log(50), 12)), 1e6):
            kernel = canny.gaussian_kernel(size, sigma)
            assert sum(kernel) == 256 and kernel == kernel[::-1] and min(kernel) >= 0
            # What a single white pixel leaves in a picture of one row: each sample times 255, rounded in units of 2^-8.
            impulse = np.zeros((1, 4 * size + 1), np.uint8)
            impulse[0, 2 * size] = 255
            spread = cv2.GaussianBlur(impulse, (size, size), sigma)[0, 2 * size - size // 2 :][:size]
            assert spread.tolist() == [(255 * value + 128) >> 8 for value in kernel], (size, sigma)


def test_grey_of_many_colours() -> None:
    steps = np.arange(0, 256, 3, dtype=np.uint8)  # 0 and 255 included
    colours = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(1, -1, 3)
    got = canny.rgb_to_grey(torch.from_numpy(colours).permute(0, 2, 1)[..., None])[..., 0]
    np.testing.assert_array_equal(got, cv2.cvtColor(colours, cv2.COLOR_RGB2GRAY))


@pytest.mark.parametrize("settings", [{}, {"threshold_mode": "median"}, {"gaussian_kernel_size": 9}])
def test_backends_agree_on_every_kind_of_input(photos: torch.Tensor, settings: dict[str, Any]) -> None:
    opencv, torch_ = (EdgeMapGenerator(backend=name, **settings) for name in ("opencv", "torch"))
    for order in ("RGB", "BGR"):
        want = maps(photos, "opencv", order, **settings)
        assert 500 < want.sum() < want.size / 2
        np.testing.assert_array_equal(maps(photos, "torch", order, **settings), want)
        picture = photos[0].permute(1, 2, 0).numpy()
        for pixels in (picture, picture.astype(np.float64) + 0.4):
            np.testing.assert_array_equal(torch_(pixels, order, False), opencv(pixels, order, False))
    pm1 = photos.float() / 127.5 - 1
    for images in (pm1, pm1[1], pm1.half(), pm1[:0]):
        torch.testing.assert_close(torch_(images), opencv(images), rtol=0, atol=0)
    torch.testing.assert_close(torch_.edges_01(pm1), opencv.edges_01(pm1), rtol=0, atol=0)
    np.testing.assert_array_equal(torch_(picture[..., 1], None, False), opencv(picture[..., 1], None, False))
    np.testing.assert_array_equal(maps(photos[:, :1], "torch", "GRAY"), maps(photos[:, :1], "opencv", "GRAY"))


def test_backend_chooses_who_works(photos: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = cv2.Canny

    def counted(*arguments: Any) -> Any:
        calls.append(1)
        return real(*arguments)

    monkeypatch.setattr(cv2, "Canny", counted)
    for backend, expected in (("auto", 4), ("opencv", 4), ("torch", 0)):
        calls.clear()
        maps(photos, backend)
        assert len(calls) == expected, backend
    with pytest.raises(UserError, match="backend 'gpu' is not known: use one of auto, opencv, torch"):
        EdgeMapGenerator(backend="gpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu(photos: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    for count in canny_exactness.compare(150, 8, "cuda").values():
        assert count["differing"] == 0
    pm1 = photos.float() / 127.5 - 1
    want = EdgeMapGenerator(threshold_mode="median", backend="opencv").edges_01(pm1)
    monkeypatch.delattr(cv2, "Canny")
    got = EdgeMapGenerator(threshold_mode="median").edges_01(pm1.cuda())
    assert got.is_cuda and torch.equal(got.cpu(), want)


def test_scripts_report(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["canny_speed.py", "--batch=2", "--size=48", "--seconds=0", "--device=cpu"])
    assert canny_speed.main() == 0
    assert "pixels that differ: 0" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["canny_exactness.py", "--pictures=3", "--device=cpu"])
    assert canny_exactness.main() == 0
    monkeypatch.setattr(canny, "rgb_to_grey", lambda rgb: 255 - rgb[:, 0].int())
    assert canny_exactness.main() == 1
    assert "3 pictures" in capsys.readouterr().out
