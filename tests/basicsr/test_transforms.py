import cv2
import numpy as np
import pytest

from basicsr.data.transforms import WINDOW_SIDES, random_crop, random_flips, random_window, reflect_pad


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def coordinates(height: int, width: int) -> np.ndarray:
    """(H, W, 3) uint16 whose pixels say where they come from: row, column, 0."""
    y, x = np.mgrid[:height, :width]
    return np.stack([y, x, 0 * x], axis=2).astype(np.uint16)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (2, 3), (5, 100), (40, 63), (64, 64), (70, 3)])
def test_reflect_pad_is_opencvs_however_small_the_picture(shape: tuple[int, int]) -> None:
    img = rng().integers(0, 256, (*shape, 3), dtype=np.uint8)
    bottom, right = (max(0, 64 - extent) for extent in shape)
    want = cv2.copyMakeBorder(img, 0, bottom, 0, right, cv2.BORDER_REFLECT_101)
    np.testing.assert_array_equal(reflect_pad(img, 64), want)


def test_crop_is_a_window_and_reaches_every_place() -> None:
    img = coordinates(10, 12)
    corners = set()
    for seed in range(200):
        crop = random_crop(img, 8, rng(seed))
        top, left = (int(v) for v in crop[0, 0, :2])
        corners.add((top, left))
        np.testing.assert_array_equal(crop, img[top : top + 8, left : left + 8])
    assert corners == {(top, left) for top in range(3) for left in range(5)}


@pytest.mark.parametrize("shape", [(1, 1), (5, 30), (30, 5), (20, 20)])
def test_crop_of_a_small_picture_is_mirrored(shape: tuple[int, int]) -> None:
    img = rng().integers(0, 256, (*shape, 3), dtype=np.uint8)
    crop = random_crop(img, 20, rng(3))
    assert crop.shape == (20, 20, 3)
    windows = [
        reflect_pad(img, 20)[top : top + 20, left : left + 20]
        for top in range(max(0, shape[0] - 20) + 1)
        for left in range(max(0, shape[1] - 20) + 1)
    ]
    assert any(np.array_equal(crop, window) for window in windows)


@pytest.mark.parametrize(
    ("hflip", "rotate", "ways"), [(False, False, 1), (True, False, 2), (False, True, 4), (True, True, 8)]
)
def test_flips_give_all_the_ways_equally_often(hflip: bool, rotate: bool, ways: int) -> None:
    img = coordinates(4, 4)
    seen: dict[bytes, int] = {}
    for seed in range(800):
        flipped = random_flips(img, rng(seed), hflip, rotate)
        assert sorted(map(tuple, flipped.reshape(-1, 3))) == sorted(map(tuple, img.reshape(-1, 3)))
        seen[flipped.tobytes()] = seen.get(flipped.tobytes(), 0) + 1
    assert len(seen) == ways
    assert min(seen.values()) > 0.6 * 800 / ways
    if not rotate:
        mirrored = {img.tobytes(), img[:, ::-1].tobytes()}
        assert set(seen) <= mirrored


def test_random_window_has_one_of_the_known_sizes_and_lies_inside() -> None:
    sizes, corners = set(), set()
    for seed in range(60):
        rows, columns = random_window((256, 192), rng(seed))
        sizes.add((rows.stop - rows.start, columns.stop - columns.start))
        corners.add((rows.start, columns.start))
        assert 0 <= rows.start < rows.stop <= 256 and 0 <= columns.start < columns.stop <= 192
    assert sizes == {(h, w) for h in WINDOW_SIDES if h <= 256 for w in WINDOW_SIDES if w <= 192}
    assert len(corners) > 25


def test_random_window_keeps_a_side_below_the_smallest() -> None:
    rows, columns = random_window((40, 100), rng())
    assert rows == slice(0, 40) and columns.stop - columns.start == 64
