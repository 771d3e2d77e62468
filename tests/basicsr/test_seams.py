import numpy as np
import pytest
from skimage import data

from basicsr.metrics.seams import seam_score


def test_a_step_at_the_border_shows_and_one_elsewhere_does_not() -> None:
    photo = data.chelsea()[:60, :80].astype(float)
    noisy = photo + np.random.default_rng(0).normal(0, 1, photo.shape)
    assert seam_score(noisy, photo, [30], [20, 40]) == pytest.approx(1, abs=0.1)
    step = noisy.copy()
    step[:, 40:] += 10
    assert seam_score(step, photo, [30], [20, 40]) > 2
    assert seam_score(step, photo, [30], [20, 50]) < 1.05
    assert seam_score(step[..., 0], photo[..., 0], [30], [20, 40]) > 2


def test_equal_pictures_have_no_seam_and_others_cannot_be_compared() -> None:
    photo = data.camera()[:40, :50]
    assert seam_score(photo, photo, [10], []) == 1
    for other, rows in ((photo[:, :-1], [10]), (photo, [40])):
        with pytest.raises(ValueError, match="pictures of|no border"):
            seam_score(photo, other, rows, [])
