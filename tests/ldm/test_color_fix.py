from collections.abc import Callable

import numpy as np
import torch
from reference.parity import noise, relative_error

from ldm.inference.color_fix import adaptive_instance_normalization, wavelet_reconstruction

Arrays = Callable[[str], dict[str, np.ndarray]]


def test_both_match_the_published(arrays: Arrays) -> None:
    reference = arrays("colour")
    content, style = (torch.from_numpy(reference[name]) for name in ("color_a", "color_b"))
    for fix, name in ((adaptive_instance_normalization, "adain"), (wavelet_reconstruction, "wavelet")):
        assert relative_error(fix(content, style)[..., ::4, ::4], reference[name]) < 1e-5  # every fourth pixel is kept


def test_adain_gives_each_picture_the_statistics_of_its_own() -> None:
    content, style = noise("content", (2, 3, 16, 16)), 3 + 2 * noise("style", (2, 3, 8, 24))
    fixed = adaptive_instance_normalization(content, style)
    assert torch.allclose(fixed.mean(dim=(2, 3)), style.mean(dim=(2, 3)), atol=1e-4)
    assert torch.allclose(fixed.std(dim=(2, 3)), style.std(dim=(2, 3)), rtol=1e-3)
    alone = adaptive_instance_normalization(content[1:], style[1:])
    assert torch.allclose(fixed[1:], alone, atol=1e-6)
    one = adaptive_instance_normalization(torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, 1))
    assert torch.allclose(one, torch.ones(1, 3, 1, 1))


def test_wavelets_take_colour_from_one_and_detail_from_the_other() -> None:
    detail = noise("detail", (1, 3, 64, 64))
    fixed = wavelet_reconstruction(detail + 5, torch.full_like(detail, -2.0))
    assert abs(float(fixed.mean()) + 2) < 0.05  # the flat part is the style's …
    assert relative_error(fixed - fixed.mean(), detail - detail.mean()) < 0.05  # … the noise is the content's
    assert torch.allclose(wavelet_reconstruction(detail, detail), detail)
