import pytest

from metrics.calibration import Bin, calibrate


def test_values_by_hand() -> None:
    # Bins are 0.05 wide from 0.5; the last one includes 1.
    found = calibrate([0.51, 0.97, 0.56, 0.54, 1.0, 0.93], [0, 1, 1, 1, 0, 1])
    expected = [Bin(0.525, 0.5, 2), Bin(0.56, 1, 1), Bin(0.93, 1, 1), Bin(0.985, 0.5, 2)]
    assert [tuple(each) for each in found.bins] == [pytest.approx(each) for each in expected]
    assert found.ece == pytest.approx((2 * 0.025 + 0.44 + 0.07 + 2 * 0.485) / 6)
    assert found.n == 6


def test_ties_count_half_and_calibrated_predictions_have_no_error() -> None:
    assert calibrate([0.5, 0.5], [0.5, 0.5]).ece == 0
    assert calibrate([0.75] * 4, [1, 1, 1, 0]) == (0, 4, [(0.75, 0.75, 4)])
