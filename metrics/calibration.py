"""Calibration: are predictions correct as often as they are confident?"""

from typing import Any, NamedTuple

import numpy as np

BINS = 10
"""Number of equally wide bins of a reliability diagram, from 0.5 to 1."""


class Bin(NamedTuple):
    """Predictions of similar confidence: mean confidence, accuracy, and number."""

    confidence: float
    accuracy: float
    n: int


class Calibration(NamedTuple):
    """The non-empty bins of a reliability diagram and the expected calibration error.

    ``ece`` is the mean over the n predictions of |accuracy - confidence| of their bins.
    """

    ece: float
    n: int
    bins: list[Bin]


def calibrate(confidences: Any, right: Any) -> Calibration:
    """Bin predictions by confidence and compare it with their accuracy.

    Guo et al. 2017, "On Calibration of Modern Neural Networks", arXiv 1706.04599, section 2.

    Args:
        confidences: Probability of the predicted class, in [0.5, 1], [n].
        right: Whether the prediction was correct, 0 to 1, [n].
    """
    sure, hit = np.asarray(confidences, dtype=np.float64), np.asarray(right, dtype=np.float64)
    bin_of = np.clip(((sure - 0.5) * 2 * BINS).astype(int), 0, BINS - 1)
    members = [bin_of == b for b in range(BINS)]
    bins = [
        Bin(float(sure[b].mean()), float(hit[b].mean()), int(b.sum())) for b in members if b.any()
    ]
    ece = sum(each.n * abs(each.accuracy - each.confidence) for each in bins) / len(sure)
    return Calibration(float(ece), len(sure), bins)
