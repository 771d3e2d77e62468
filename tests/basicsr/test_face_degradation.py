"""The face degradation's steps one by one on known inputs, then together, and the data set around them."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from basicsr.data import face_degradation as steps
from basicsr.data.face_degradation import FaceDegradation
from basicsr.data.ffhq_degradation_dataset import FFHQDegradationDataset
from basicsr.utils.errors import FieldError

NOTHING: dict[str, Any] = {
    "blur_kernel_size": 1, "kernel_list": ["iso"], "kernel_prob": [1], "blur_sigma": [1, 1], "downsample_range": [1, 1],
    "noise_range": None, "jpeg_range": None, "color_jitter_prob": 0.0, "color_jitter_shift": 20,
    "color_jitter_pt_prob": 0.0, "brightness": [1, 1], "contrast": [1, 1], "saturation": [1, 1], "hue": [0, 0],
    "gray_prob": 0.0, "gt_gray": False,
}  # fmt: skip
LUMA = np.array([0.299, 0.587, 0.114])


@pytest.fixture(scope="module")
def face() -> steps.Picture:
    """(96, 80, 3) of a photograph, float32 in [0, 1]."""
    photo = np.asarray(skimage.data.astronaut())
    return photo[20:116, 180:260].astype(np.float32) / np.float32(255)


def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def degradation(**changed: Any) -> FaceDegradation:
    return FaceDegradation(**{**NOTHING, **changed})


def test_a_point_blurs_into_the_kernel() -> None:
    point = np.zeros((11, 11, 3), np.float32)
    point[5, 5] = 1
    kernel = np.outer([1, 2, 1], [1, 4, 1]) / 24
    found = steps.blurred(point, kernel)
    np.testing.assert_allclose(found[4:7, 4:7, 1], kernel, atol=1e-6)
    assert found.sum() == pytest.approx(3)


def test_borders_are_mirrored_without_their_pixel() -> None:
    row = np.repeat(np.array([[0.0, 1.0, 0.5]], np.float32)[..., None], 3, axis=2)
    found = steps.blurred(row, np.array([[0.25, 0.5, 0.25]]))
    np.testing.assert_allclose(found[0, :, 0], [0.5, 0.625, 0.75], atol=1e-6)  # beside 0 lies 1 again, beside 0.5 too


@pytest.mark.parametrize(("scale", "size"), [(1.0, (96, 80)), (3.1, (30, 25)), (32.0, (3, 2)), (0.8, (120, 100))])
def test_reduced_sides_are_rounded_down(scale: float, size: tuple[int, int], face: steps.Picture) -> None:
    assert steps.reduced(face, scale).shape[:2] == size
    assert steps.reduced(face, 1000.0).shape[:2] == (1, 1)


def test_reduction_is_bilinear_at_the_pixels_centres() -> None:
    ramp = np.repeat(np.arange(8, dtype=np.float32)[None, :, None] / 8, 3, axis=2)
    # Pixel i of 4 lies at 2 i + 0.5 of 8: the mean of its two.
    np.testing.assert_allclose(steps.reduced(np.repeat(ramp, 8, 0), 2.0)[0, :, 0], (np.arange(4) * 2 + 0.5) / 8)
    # By 4, bilinear looks at the two pixels in the middle alone: that is the aliasing.
    spikes = np.zeros((8, 8, 3), np.float32)
    spikes[:, 0] = 1
    assert steps.reduced(spikes, 4.0).max() == 0


def test_noise_is_in_grey_levels_and_stays_in_range() -> None:
    grey = np.full((4, 4, 3), 0.5, np.float32)
    noise = np.ones_like(grey)
    np.testing.assert_allclose(steps.with_noise(grey, noise, 25.5), 0.6, rtol=1e-6)
    assert steps.with_noise(grey, noise, 255.0).max() == 1
    drawn = degradation(noise_range=[10, 10])(np.full((64, 64, 3), 0.5, np.float32), rng())[0]
    assert drawn.std() * 255 == pytest.approx(10, rel=0.05)


def test_jpeg_is_that_of_a_file(face: steps.Picture) -> None:
    file = io.BytesIO()
    Image.fromarray((face * 255).round().astype(np.uint8)).save(file, "JPEG", quality=40)
    theirs = np.asarray(Image.open(file), np.float32) / 255
    ours = steps.compressed(face, 40)
    assert np.abs(ours - theirs).mean() * 255 < 1  # libraries enlarge the chroma in their own ways
    assert np.abs(ours - face).mean() > 2 * np.abs(steps.compressed(face, 95) - face).mean()


def test_enlarging_is_bilinear() -> None:
    two = np.repeat(np.array([[0.0, 1.0]], np.float32)[..., None], 3, axis=2)
    np.testing.assert_allclose(steps.enlarged(two, (1, 4))[0, :, 0], [0, 0.25, 0.75, 1])


def test_colours_by_their_formulas(face: steps.Picture) -> None:
    grey = np.repeat((face * LUMA).sum(2, keepdims=True), 3, axis=2)
    mean = grey.mean()
    np.testing.assert_allclose(steps.grey(face), grey, atol=1e-5)
    np.testing.assert_allclose(steps.brightened(face, 1.3), np.minimum(face * 1.3, 1), atol=1e-5)
    np.testing.assert_allclose(steps.contrasted(face, 0.5), 0.5 * face + 0.5 * mean, atol=1e-5)
    np.testing.assert_allclose(steps.saturated(face, 0.25), 0.25 * face + 0.75 * grey, atol=1e-5)
    np.testing.assert_allclose(
        steps.shifted(face, np.array([0.1, -0.1, 0])), np.clip(face + [0.1, -0.1, 0], 0, 1), atol=1e-5
    )
    np.testing.assert_allclose(steps.hue_shifted(face, 1 / 3), face[..., [2, 0, 1]], atol=1e-4)  # red becomes green
    np.testing.assert_allclose(steps.hue_shifted(face, 0.0), face, atol=1e-4)


def test_rounding_is_to_eight_bits() -> None:
    np.testing.assert_array_equal(
        steps.rounded(np.array([-0.1, 0.0019, 0.0021, 1.2], np.float32)), np.array([0, 0, 1 / 255, 1], np.float32)
    )


def test_without_a_step_nothing_happens(face: steps.Picture) -> None:
    lq, gt = degradation()(face, rng())
    np.testing.assert_allclose(lq, face, atol=1e-6)
    assert gt is face


def test_the_steps_come_in_their_order(face: steps.Picture) -> None:
    lq, _ = degradation(blur_kernel_size=9, blur_sigma=[2, 2], downsample_range=[4, 4], jpeg_range=[50, 50])(
        face, rng()
    )
    axis = np.arange(9) - 4
    kernel = np.exp(-(axis[:, None] ** 2 + axis**2) / 8)
    by_hand = steps.compressed(steps.reduced(steps.blurred(face, kernel / kernel.sum()), 4.0), 50)
    np.testing.assert_allclose(lq, steps.rounded(steps.enlarged(by_hand, (96, 80))), atol=1.01 / 255)
    assert np.abs(lq * 255 - np.round(lq * 255)).max() < 1e-3


@pytest.mark.parametrize("gt_gray", [False, True])
def test_grey_pairs(gt_gray: bool, face: steps.Picture) -> None:
    lq, gt = degradation(gray_prob=1.0, gt_gray=gt_gray)(face, rng())
    assert np.ptp(lq, axis=2).max() < 1e-6
    assert (np.ptp(gt, axis=2).max() < 1e-6) == gt_gray


def test_the_shift_is_one_amount_for_each_channel(face: steps.Picture) -> None:
    middle = 0.25 + face / 2
    lq, _ = degradation(color_jitter_prob=1.0, color_jitter_shift=20)(middle, rng())
    shift = (lq - middle).reshape(-1, 3) * 255
    assert np.ptp(shift, axis=0).max() <= 1.01  # the rounding to 8 bits
    assert 0 < np.abs(shift.mean(0)).max() <= 20.5 and np.ptp(shift.mean(0)) > 1


def test_colour_factors_are_drawn_from_their_ranges(face: steps.Picture) -> None:
    lq, _ = degradation(color_jitter_pt_prob=1.0, brightness=[0.5, 0.5], saturation=[0, 0])(face, rng())
    np.testing.assert_allclose(lq, steps.grey(face) / 2, atol=1.5 / 255)


@pytest.mark.parametrize(
    ("key", "value"),
    [("blur_kernel_size", 40), ("downsample_range", [4, 1]), ("jpeg_range", [30, 101]), ("hue", [-1, 1]),
     ("gray_prob", 1.5), ("noise_range", 3), ("mean", [0.5, 0.5, 0.5]), ("io_backend", {"type": "petrel"})],
)  # fmt: skip
def test_a_value_that_cannot_be_is_named(key: str, value: object, faces: Path) -> None:
    with pytest.raises(FieldError) as error:
        FFHQDegradationDataset(str(faces), **{key: value})  # type: ignore[arg-type]  # wrong on purpose
    assert error.value.field.partition(".")[0] == key


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two faces of 64 pixels."""
    folder = tmp_path_factory.mktemp("faces")
    photo = Image.fromarray(skimage.data.astronaut())
    photo = photo.crop((180, 20, 308, 148)).resize((64, 64))
    photo.save(folder / "00000.png")
    photo.rotate(90).save(folder / "00001.png")
    photo.save(folder / "other.jpg")
    return folder


def dataset(faces: Path, **options: Any) -> FFHQDegradationDataset:
    return FFHQDegradationDataset(str(faces), **{"out_size": 64, "blur_kernel_size": 41, **options})


def test_a_sample_is_a_pair_ready_made(faces: Path) -> None:
    sample = dataset(faces, use_hflip=False)[0]
    truth = torch.from_numpy(np.asarray(Image.open(faces / "00000.png")).transpose(2, 0, 1).copy()) / 255
    torch.testing.assert_close(sample["gt"], truth)
    assert sample["lq"].shape == (3, 64, 64) and sample["lq"].dtype == torch.float32
    assert sample["lq"].min() >= 0 and sample["lq"].max() <= 1 and not torch.equal(sample["lq"], truth)
    assert sample["gt_path"] == str(faces / "00000.png")
    assert len(dataset(faces)) == 2 and len(dataset(faces, image_type="any")) == 3


def test_seed_epoch_and_index_decide_a_sample(faces: Path) -> None:
    data = dataset(faces)
    assert torch.equal(data[3]["lq"], dataset(faces)[3]["lq"])
    assert not torch.equal(data[1]["lq"], data[3]["lq"])  # the same face one epoch later
    assert not torch.equal(data[3]["lq"], dataset(faces, seed=5)[3]["lq"])
    flips = [torch.equal(data[2 * epoch]["gt"], data[0]["gt"]) for epoch in range(8)]
    assert True in flips and False in flips


def test_another_side_is_cut_or_mirrored(faces: Path) -> None:
    assert dataset(faces, crop_size=48)[0]["lq"].shape == (3, 48, 48)
    assert dataset(faces, out_size=80)[0]["gt"].shape == (3, 80, 80)


def test_a_folder_without_faces_is_named(faces: Path, tmp_path: Path) -> None:
    with pytest.raises(FieldError, match="dataroot_gt has no .webp file below"):
        dataset(faces, image_type="webp")
    with pytest.raises(FieldError, match="dataroot_gt is .*none, which does not exist"):
        dataset(tmp_path / "none")
