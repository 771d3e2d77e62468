import numpy as np
import pytest

from basicsr.metrics.edge_metrics import edge_precision_recall_f1


def test_overlap_counts_neighbours_within_the_tolerance() -> None:
    true, pred = np.zeros((2, 9, 9), bool)
    true[4, :], pred[5, :], pred[0, 0] = True, True, True
    assert edge_precision_recall_f1(pred, true, 1) == pytest.approx((0.9, 1, 2 * 0.9 / 1.9))
    assert edge_precision_recall_f1(pred, true, 0) == (0, 0, 0)
    nothing = np.zeros((9, 9), bool)
    assert edge_precision_recall_f1(nothing, nothing, 1).f1 == 1
    assert edge_precision_recall_f1(pred, nothing, 1).f1 == 0
