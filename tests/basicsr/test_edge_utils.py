import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from basicsr.utils.edge_utils import EdgeMapGenerator
from basicsr.utils.errors import UserError

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
    np.testing.assert_array_equal(median.generate_from_numpy(picture)[..., 0], REFERENCE[f"edge_median{i}"])
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
def test_every_argument_changes_the_map(picture: np.ndarray, base: dict, change: dict) -> None:
    before, after = EdgeMapGenerator(**base), EdgeMapGenerator(**base, **change)
    assert (before.generate_from_numpy(picture) != after.generate_from_numpy(picture)).any()
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
        ({"high_threshold": 256}, "high_threshold.* is 256"),
        ({"low_threshold": 201}, "low_threshold, high_threshold.* is .201, 200"),
        ({"median_low_factor": -0.1}, "median_low_factor.* is -0.1"),
        ({"median_low_factor": 1.4}, "median_low_factor, median_high_factor.* is .1.4, 1.3"),
        ({"morphology_kernel_size": 2}, "morphology_kernel_size is 2"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, named: str) -> None:
    with pytest.raises(UserError, match=named):
        EdgeMapGenerator(**arguments)


def test_bad_inputs_are_refused(picture: np.ndarray) -> None:
    generator = EdgeMapGenerator()
    with pytest.raises(UserError, match="input_format='HSV'"):
        generator.generate_from_numpy(picture, input_format="HSV")
    with pytest.raises(UserError, match="normalize_input"):
        generator.generate_from_numpy(picture, normalize_input=True)
    with pytest.raises(UserError, match="channel"):
        generator.generate_from_tensor(torch.zeros(2, 4, 8, 8))
    with pytest.raises(UserError, match="normalize_range"):
        generator.generate_from_tensor(pm1(picture), normalize_range=(1, 1))
    with pytest.raises(UserError, match="at least one pixel"):
        generator.generate_from_tensor(torch.zeros(2, 3, 0, 8))


def test_ranges_agree(picture: np.ndarray) -> None:
    generator = EdgeMapGenerator()
    # Half a level up, so that truncation finds the same level whatever rounding the change of range brings.
    levels = picture.astype(np.float32) + 0.5
    want = generator.generate_from_numpy(levels)
    np.testing.assert_array_equal(generator.generate_from_numpy(levels / 255, normalize_input=True), want)
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
        generator.generate_from_numpy(over), generator.generate_from_numpy(np.clip(over, 0, 255))
    )
    assert generator.generate_from_numpy(over).any()


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
    want = generator.generate_from_numpy(picture)
    np.testing.assert_array_equal(generator.generate_from_numpy(grey), want)
    np.testing.assert_array_equal(generator.generate_from_numpy(grey[..., None], input_format="GRAY"), want)
    tensor = torch.from_numpy(grey)[None].float()
    got = generator.generate_from_tensor(tensor, input_format="GRAY", normalize_range=(0, 255))
    np.testing.assert_array_equal(got.permute(1, 2, 0).numpy() / 255, want)


def test_calling_it_takes_either(picture: np.ndarray) -> None:
    generator = EdgeMapGenerator()
    np.testing.assert_array_equal(generator(picture, "BGR"), generator.generate_from_numpy(picture, "BGR"))
    torch.testing.assert_close(generator(pm1(picture)), generator.generate_from_tensor(pm1(picture)), rtol=0, atol=0)


def test_import_is_light() -> None:
    code = (
        "import sys, basicsr.utils.edge_utils\n"
        "heavy = [m for m in sys.modules if m.split('.')[0] in ('ldm', 'pytorch_lightning', 'lightning')]\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
