import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from basicsr.utils.edge_utils import EdgeMapGenerator, generate_edge_map
from basicsr.utils.errors import FieldError, UserError

# Three small pictures with the edge maps of the published formula: dark, textured and low in contrast.
REFERENCE = np.load(Path(__file__).parent / "data" / "edge_reference.npz")
PICTURES = (0, 2, 3)


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """(128, 128, 3) uint8: shapes of several contrasts with some noise, so that every knob has something to change."""
    rng = np.random.default_rng(0)
    canvas = np.full((128, 128, 3), 90, np.uint8)
    for _ in range(25):
        x, y, radius = (int(v) for v in rng.integers(4, 124, 3))
        colour = tuple(int(v) for v in rng.integers(0, 256, 3))
        cv2.circle(canvas, (x, y), 3 + radius // 6, colour, thickness=-1)
    return np.clip(canvas + rng.normal(0, 12, canvas.shape), 0, 255).astype(np.uint8)


def pm1(picture: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(picture.astype(np.float32) / 255).permute(2, 0, 1) * 2 - 1


@pytest.mark.parametrize("i", PICTURES)
def test_reference_maps(i: int) -> None:
    picture = REFERENCE[f"pic{i}"]
    fixed, median = EdgeMapGenerator(), EdgeMapGenerator(threshold_mode="median")
    for pixels in (picture, picture.astype(np.float32), picture.astype(np.float64)):
        for order in ("RGB", "BGR"):
            edges = fixed.generate_from_numpy(pixels, input_format=order, normalize_input=False)
            assert edges.shape == picture.shape and edges.dtype == np.float32
            for channel in range(3):
                np.testing.assert_array_equal(edges[..., channel], REFERENCE[f"edge_{order.lower()}{i}"])
    np.testing.assert_array_equal(
        median.generate_from_numpy(picture, "RGB", False)[..., 0], REFERENCE[f"edge_median{i}"]
    )
    tensor = fixed.generate_from_tensor(pm1(picture)[None])
    np.testing.assert_array_equal((tensor[0, 0].numpy() + 1) / 2, REFERENCE[f"edge_tensor{i}"])
    np.testing.assert_array_equal(fixed.edges_01(pm1(picture)[None])[0, 0].numpy(), REFERENCE[f"edge_tensor{i}"])


def test_reference_maps_are_not_trivial() -> None:
    assert REFERENCE["edge_rgb0"].sum() > 30 and REFERENCE["edge_median3"].sum() > 30


@pytest.mark.parametrize(
    ("base", "change"),
    [
        ({}, {"gaussian_kernel_size": 3}),
        ({}, {"gaussian_sigma": 0.6}),
        ({}, {"threshold_mode": "median"}),
        ({}, {"low_threshold": 20}),
        ({}, {"high_threshold": 120}),
        ({}, {"morphology_kernel_size": 3}),
        ({"threshold_mode": "median"}, {"median_low_factor": 0.2}),
        ({"threshold_mode": "median"}, {"median_high_factor": 2.2}),
        ({"threshold_mode": "median"}, {"morphology_kernel_size": 0}),
        ({"threshold_mode": "median"}, {"morphology_kernel_size": 5}),
    ],
)
def test_every_argument_changes_the_map(picture: np.ndarray, base: dict[str, Any], change: dict[str, Any]) -> None:
    before, after = EdgeMapGenerator(**base), EdgeMapGenerator(**base, **change)
    assert (before.generate_from_numpy(picture, "RGB", False) != after.generate_from_numpy(picture, "RGB", False)).any()
    assert (before.generate_from_tensor(pm1(picture)) != after.generate_from_tensor(pm1(picture))).any()
    assert (before.edges_01(pm1(picture)[None]) != after.edges_01(pm1(picture)[None])).any()


def test_device_argument_places_the_result(picture: np.ndarray) -> None:
    images = pm1(picture)[None]
    assert EdgeMapGenerator(device="meta").generate_from_tensor(images).device.type == "meta"
    assert EdgeMapGenerator(device="meta").edges_01(images).device.type == "meta"
    assert EdgeMapGenerator().generate_from_tensor(images).device.type == "cpu"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_gives_the_same_map_and_keeps_its_device(picture: np.ndarray) -> None:
    images = pm1(picture)[None]
    on_gpu = EdgeMapGenerator().generate_from_tensor(images.cuda())
    assert on_gpu.device.type == "cuda"
    torch.testing.assert_close(on_gpu.cpu(), EdgeMapGenerator().generate_from_tensor(images), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"gaussian_kernel_size": 4}, "gaussian_kernel_size is 4"),
        ({"gaussian_kernel_size": -3}, "gaussian_kernel_size is -3"),
        ({"gaussian_kernel_size": 3.5}, "gaussian_kernel_size is 3.5"),
        ({"gaussian_sigma": 0}, "gaussian_sigma is 0"),
        ({"gaussian_sigma": float("nan")}, "gaussian_sigma is nan"),
        ({"threshold_mode": "fix"}, "threshold_mode 'fix' is not known: did you mean 'fixed'"),
        ({"low_threshold": -1}, "low_threshold.* is -1"),
        ({"high_threshold": float("inf")}, "high_threshold.* is inf"),
        ({"low_threshold": 201}, "low_threshold, high_threshold.* is .201, 200"),
        ({"median_low_factor": -0.1}, "median_low_factor.* is -0.1"),
        ({"median_low_factor": 1.4}, "median_low_factor, median_high_factor.* is .1.4, 1.3"),
        ({"morphology_kernel_size": 2}, "morph_kernel_size is 2: give an odd number"),
        ({"morph_kernel_size": (3, 4)}, "morph_kernel_size is .3, 4.: give an odd number"),
        ({"gaussian_kernel_size": (3, 5, 7)}, "gaussian_kernel_size is .*: give one number, or a width and a height"),
        ({"gaussian_kernel_size": "55"}, "gaussian_kernel_size is '55': give a number"),
        ({"morph_kernel_shape": 9}, "morph_kernel_shape is 9: give cv2.MORPH_ELLIPSE"),
        ({"morph_kernel_size": 3, "morphology_kernel_size": 3}, "morph_kernel_size is given under two names"),
        ({"canny_threshold_lower_factor": 0.5, "median_low_factor": 0.5}, "lower_factor is given under two names"),
        ({"canny_threshold_lower_factor": 0.5, "low_threshold": 50}, "against fixed thresholds: give either"),
        ({"canny_threshold_upper_factor": 1.5, "threshold_mode": "fixed"}, "against fixed thresholds: give either"),
        ({"canny_threshold_lower_factor": 1.5}, "median_low_factor, median_high_factor.* is .1.5, 1.3"),
        ({"device": "gpu"}, "device is 'gpu', which PyTorch does not know: give cpu or cuda"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        EdgeMapGenerator(**arguments)


def test_bad_inputs_are_refused(picture: np.ndarray) -> None:
    generator = EdgeMapGenerator()
    with pytest.raises(UserError, match="input_format is 'HSV': give one of RGB, BGR, GRAY"):
        generator.generate_from_numpy(picture, "HSV", normalize_input=False)
    with pytest.raises(UserError, match="channel"):
        generator.generate_from_tensor(torch.zeros(2, 4, 8, 8))
    with pytest.raises(UserError, match="normalize_range is .1, 1.: the first number must be below"):
        generator.generate_from_tensor(pm1(picture), normalize_range=(1, 1))
    with pytest.raises(UserError, match="normalize_range is '.0,255.': give .-1,1., .0,1. or a pair"):
        generator.generate_from_tensor(pm1(picture), normalize_range="[0,255]")
    with pytest.raises(UserError, match="at least one pixel"):
        generator.generate_from_tensor(torch.zeros(2, 3, 0, 8))


def test_what_would_give_a_wrong_map_is_refused_with_what_to_pass(picture: np.ndarray) -> None:
    generator = EdgeMapGenerator()
    p01 = picture / 255
    for array, normalize, message in (
        (
            picture,
            True,
            "^normalize_input is True, for floats in .0, 1., but these are uint8: pass normalize_input=False$",
        ),
        (p01, False, "^normalize_input is False, for values from 0 to 255, but these are at most 1: pass True for"),
        (picture.astype(np.float32), True, "but these are 0 to 255: pass True for .0, 1., False for .0, 255.$"),
        (p01 * 2 - 1, True, "but these are -1 to 1: pass"),
        (picture.astype(np.uint16) * 257, False, "but these are 0 to 65535: pass"),
    ):
        with pytest.raises(FieldError, match=message):
            generator.generate_from_numpy(array, "RGB", normalize)
    levels = torch.from_numpy(picture).permute(2, 0, 1)
    for tensor, stated, message in (
        (levels, "[-1,1]", "^normalize_range is .-1,1., but these are torch.uint8: pass normalize_range=.0, 255.$"),
        (
            levels.float(),
            "[-1,1]",
            "^normalize_range is .-1,1., for values from -1 to 1, but these are 0 to 255: pass the",
        ),
        (
            levels.float(),
            (0, 1),
            "^normalize_range is .0, 1., .*but these are 0 to 255: pass the range that they have$",
        ),
        (pm1(picture), "[0,1]", "but these are -1 to 1: pass"),
        (levels / 255, (0, 255), "but these are at most 1: pass"),
    ):
        with pytest.raises(FieldError, match=message):
            generator.generate_from_tensor(tensor, normalize_range=stated)
    for harmless in (np.zeros((8, 8)), np.full((8, 8), 0.5), picture * 0):  # one value: no edges in any range
        assert not generator.generate_from_numpy(harmless, normalize_input=False).any()
    assert generator.edges_01(pm1(picture)[None] * 9).any()  # a prediction may be far off


def test_the_forks_calls(picture: np.ndarray) -> None:
    """Its names, its order of arguments and its defaults: BGR arrays in [0, 1], RGB tensors in [-1, 1]."""
    want = cv2.Canny(cv2.GaussianBlur(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY), (5, 5), 1.4), 100, 200) / 255
    half_up = (picture + 0.5) / 255.5  # above the level by less than one
    generator = EdgeMapGenerator(gaussian_kernel_size=(5, 5), gaussian_sigma=1.4, device="cpu")
    for found in (
        generator.generate_from_numpy(half_up),
        generator(half_up),
        generator(picture, normalize_input=False),
        generate_edge_map(half_up),
        generate_edge_map(picture, "BGR", normalize_input=False, gaussian_kernel_size=5),
    ):
        assert isinstance(found, np.ndarray) and found.dtype == np.float32
        np.testing.assert_array_equal(found, np.repeat(want[..., None], 3, axis=2))
    rgb = torch.from_numpy(half_up[..., ::-1].copy()).permute(2, 0, 1).float()
    for found in (
        generator.generate_from_tensor(rgb * 2 - 1),
        generator(rgb * 2 - 1),
        generator(rgb, normalize_range="[0, 1]"),
        generate_edge_map(rgb.flip(0), "BGR", normalize_range="[0,1]"),
    ):  # whatever the text says of the input, the map is in [-1, 1]
        assert isinstance(found, torch.Tensor)
        np.testing.assert_array_equal(found[0].numpy(), want * 2 - 1)
    pair = generator(rgb, normalize_range=(0, 1))
    np.testing.assert_array_equal(pair[0], want)


@pytest.mark.parametrize("backend", ["opencv", "torch"])
def test_the_forks_factors_and_kernels_do_what_their_names_say(picture: np.ndarray, backend: str) -> None:
    grey = cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)
    blurred = cv2.GaussianBlur(grey, (7, 3), 1.1)
    median = float(np.median(blurred))
    for shape in (cv2.MORPH_ELLIPSE, cv2.MORPH_RECT, cv2.MORPH_CROSS):
        generator = EdgeMapGenerator((7, 3), 1.1, 0.5, 1.6, (5, 3), shape, backend=backend)
        edges = cv2.Canny(blurred, int(0.5 * median), int(1.6 * median))
        want = cv2.morphologyEx(edges, cv2.MORPH_CLOSE, cv2.getStructuringElement(shape, (5, 3)))
        assert (want != edges).any()
        np.testing.assert_array_equal(generator(picture, normalize_input=False)[..., 0] * 255, want)
    ours = EdgeMapGenerator(threshold_mode="median", median_low_factor=0.7, median_high_factor=1.5, backend=backend)
    forks = EdgeMapGenerator(canny_threshold_upper_factor=1.5, backend=backend)
    np.testing.assert_array_equal(ours(grey, normalize_input=False), forks(grey, normalize_input=False))


@pytest.mark.parametrize("backend", ["opencv", "torch"])
def test_thresholds_of_any_size_as_in_opencv(picture: np.ndarray, backend: str) -> None:
    picture = np.where(picture > 120, 255, 0).astype(np.uint8)  # steps of up to 255 levels
    blurred = cv2.GaussianBlur(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY), (3, 3), 0.6)
    counts = []
    for low, high in ((0, 0), (150, 400), (300, 700), (500, 1e30)):
        generator = EdgeMapGenerator(3, 0.6, low_threshold=low, high_threshold=high, backend=backend)
        found = generator(picture, normalize_input=False)[..., 0]
        np.testing.assert_array_equal(found * 255, cv2.Canny(blurred, low, min(high, 1e6)))
        counts.append(found.sum())
    assert counts[0] > counts[1] > counts[2] > counts[3] == 0


def test_a_cuda_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(
        FieldError, match="^device is cuda, but PyTorch sees no CUDA device here: give cpu, or nothing$"
    ):
        EdgeMapGenerator(device="cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(FieldError, match="^device is cuda:7, but PyTorch sees 2 CUDA device"):
        generate_edge_map(np.zeros((4, 4)), device="cuda:7")


def test_ranges_agree(picture: np.ndarray) -> None:
    generator = EdgeMapGenerator()
    # Half a level up, so that truncation finds the same level whatever rounding the change of range brings.
    levels = picture.astype(np.float32) + 0.5
    want = generator.generate_from_numpy(levels, "RGB", False)
    np.testing.assert_array_equal(generator.generate_from_numpy(levels / 255, "RGB"), want)
    tensor = torch.from_numpy(levels).permute(2, 0, 1) / 255
    for low, high in ((0.0, 1.0), (-1.0, 1.0), (-4.0, 4.0)):
        got = generator.generate_from_tensor(tensor * (high - low) + low, normalize_range=(low, high))
        assert set(got.unique().tolist()) == {low, high}
        np.testing.assert_array_equal((got.permute(1, 2, 0).numpy() > (low + high) / 2), want > 0.5)


def test_values_outside_the_range_are_clamped_not_wrapped(picture: np.ndarray) -> None:
    images = pm1(picture) * 1.6
    generator = EdgeMapGenerator()
    torch.testing.assert_close(
        generator.generate_from_tensor(images), generator.generate_from_tensor(images.clamp(-1, 1)), rtol=0, atol=0
    )
    over = picture.astype(np.float32) * 2 - 128
    np.testing.assert_array_equal(
        generator.generate_from_numpy(over, "RGB", False),
        generator.generate_from_numpy(np.clip(over, 0, 255), "RGB", False),
    )
    assert generator.generate_from_numpy(over, "RGB", False).any()


def test_nan_is_black_and_infinities_are_the_ends() -> None:
    square = torch.full((3, 32, 32), 1.0)
    square[:, 8:24, 8:24] = -1.0
    odd = square.clone()
    odd[:, 8:24, 8:24] = float("nan")
    odd[:, 0:4] = float("inf")
    edges = EdgeMapGenerator().generate_from_tensor(square)
    assert (edges == 1).any()
    torch.testing.assert_close(EdgeMapGenerator().generate_from_tensor(odd), edges, rtol=0, atol=0)


def test_shapes_types_and_no_gradient(picture: np.ndarray) -> None:
    generator = EdgeMapGenerator()
    other = picture[:, ::-1].copy()
    batch = torch.stack([pm1(picture), pm1(other)]).requires_grad_()
    edges = generator.generate_from_tensor(batch)
    assert edges.shape == batch.shape and not edges.requires_grad
    for i in range(2):
        torch.testing.assert_close(edges[i], generator.generate_from_tensor(batch[i]), rtol=0, atol=0)
    weights = generator.edges_01(batch)
    assert weights.shape == (2, 1, 128, 128) and weights.dtype == torch.float32 and not weights.requires_grad
    torch.testing.assert_close(weights.expand(-1, 3, -1, -1), (edges + 1) / 2, rtol=0, atol=0)
    assert generator.generate_from_tensor(batch.half()).dtype == torch.float16
    assert generator.generate_from_tensor(batch[:0]).shape == (0, 3, 128, 128)
    assert generator.generate_from_tensor(torch.zeros(3, 1, 1)).shape == (3, 1, 1)


def test_grey_pictures(picture: np.ndarray) -> None:
    generator = EdgeMapGenerator()
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    want = generator.generate_from_numpy(picture, "RGB", False)
    np.testing.assert_array_equal(generator.generate_from_numpy(grey, normalize_input=False), want)
    np.testing.assert_array_equal(generator.generate_from_numpy(grey[..., None], "GRAY", False), want)
    tensor = torch.from_numpy(grey)[None].float()
    got = generator.generate_from_tensor(tensor, input_format="GRAY", normalize_range=(0, 255))
    np.testing.assert_array_equal(got.permute(1, 2, 0).numpy() / 255, want)


def test_import_is_light() -> None:
    code = (
        "import sys, basicsr.utils.edge_utils\n"
        "heavy = [m for m in sys.modules if m.split('.')[0] in ('ldm', 'pytorch_lightning', 'lightning')]\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
