from collections.abc import Callable

import numpy as np
import pytest
import torch
from reference.parity import SIDE, noise, relative_error
from torch import Tensor

from basicsr.utils.errors import UserError
from ldm.models.diffusion.tiling import Tiling, gaussian_weights, tile_starts, tiled


def test_tiles_cover_everything_and_overlap_enough() -> None:
    for length in range(1, 60):
        for tile in (1, 4, 9, 16):
            for overlap in range(0, tile, 3):
                starts = tile_starts(length, tile, overlap)
                if length <= tile:
                    assert starts == [0]
                    continue
                assert starts[0] == 0
                assert starts[-1] == length - tile
                steps = np.diff(starts)
                assert (steps > 0).all()
                assert (steps <= tile - overlap).all()  # so neighbours share at least `overlap`, and no cell is missed


def test_weights_are_the_published_gaussian(arrays: Callable[[str], dict[str, np.ndarray]]) -> None:
    weights, published = gaussian_weights(SIDE, SIDE), arrays("training_and_sampling")["canvas_tile_weights"]
    assert relative_error(weights / weights.max(), published / published.max()) < 1e-12  # their scale divides out
    wide = gaussian_weights(6, 10)
    assert wide.shape == (6, 10)
    assert torch.allclose(wide, wide.flip(1))  # centred along x …
    assert not torch.allclose(wide, wide.flip(0))  # … and half a cell off along y
    # One side away from the centre is 10 standard deviations.
    assert float(wide[3, 0]) == pytest.approx(np.exp(-0.5 * (10 * 4.5 / 10) ** 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("height", "width", "tile", "overlap"), [(24, 24, 16, 8), (17, 40, 16, 3), (5, 33, 8, 0)])
def test_the_weights_of_every_cell_sum_to_one(
    height: int, width: int, tile: int, overlap: int, dtype: torch.dtype
) -> None:
    x = torch.zeros(2, 4, height, width, dtype=dtype)
    canvas = tiled(lambda x, t, z: torch.ones_like(x), x, Tiling(tile, overlap))(x, torch.zeros(2))
    assert canvas.dtype == dtype
    assert torch.allclose(canvas, torch.ones_like(canvas), atol=1e-6)


def test_a_pointwise_denoiser_does_not_notice_the_tiles() -> None:
    x, z, t = noise("x", (2, 4, 19, 30)), noise("z", (2, 4, 19, 30)), torch.tensor([1, 5])

    def denoise(x: Tensor, t: Tensor, z: Tensor) -> Tensor:
        return x * z + t.view(-1, 1, 1, 1)

    assert relative_error(tiled(denoise, z, Tiling(8, 5))(x, t), denoise(x, t, z)) < 1e-6


def test_one_tile_that_covers_all_is_no_tiling() -> None:
    x, z, t = noise("x", (1, 4, 6, 9)), noise("z", (1, 4, 6, 9)), torch.tensor([3])
    calls = []

    def denoise(x: Tensor, t: Tensor, z: Tensor) -> Tensor:
        calls.append(x.shape)
        return torch.nn.functional.avg_pool2d(x, 3, 1, 1) + z

    assert torch.allclose(tiled(denoise, z, Tiling(64, 32))(x, t), denoise(x, t, z), atol=1e-6)
    assert calls == [x.shape, x.shape]


def test_tiles_are_blended_by_weight() -> None:
    # Two tiles with known constants: every cell is their weighted mean.
    z, values = torch.zeros(1, 1, 8, 12), iter([1.0, 3.0])
    got = tiled(lambda x, t, z: torch.full_like(x, next(values)), z, Tiling(8, 4))(z, torch.zeros(1))
    left, right = torch.zeros(8, 12), torch.zeros(8, 12)
    left[:, :8], right[:, 4:] = (gaussian_weights(8, 8).float(),) * 2
    assert relative_error(got[0, 0], (left + 3 * right) / (left + right)) < 1e-6


@pytest.mark.parametrize("overlap", [-1, 16, 20])
def test_an_overlap_that_does_not_fit_is_refused(overlap: int) -> None:
    with pytest.raises(UserError, match="choose 0 to 15"):
        tiled(lambda x, t, z: x, torch.zeros(1, 4, 32, 32), Tiling(16, overlap))
