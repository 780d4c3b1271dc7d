"""Whether predictions are right as often as they are sure."""

from typing import Any, NamedTuple

import numpy as np

BINS = 10
"""Of a reliability diagram, equally wide from 0.5 to 1."""


class Bin(NamedTuple):
    """Predictions of like confidence: their mean confidence, the share that was right, and n."""

    confidence: float
    accuracy: float
    n: int


class Calibration(NamedTuple):
    """A reliability diagram's bins that are not empty, and the expected calibration error.

    ece is the mean over n predictions of their bin's |accuracy - confidence|.
    """

    ece: float
    n: int
    bins: list[Bin]


def calibrate(confidences: Any, right: Any) -> Calibration:
    """Sort predictions into bins by their confidence.

    Guo et al. 2017, "On Calibration of Modern Neural Networks", arXiv 1706.04599, section 2.

    Args:
        confidences: Probability of what was predicted, in [0.5, 1], [n].
        right: Whether it was right, 0 to 1, [n].
    """
    sure, hit = np.asarray(confidences, dtype=np.float64), np.asarray(right, dtype=np.float64)
    place = np.clip(((sure - 0.5) * 2 * BINS).astype(int), 0, BINS - 1)
    bins = [
        Bin(float(sure[place == b].mean()), float(hit[place == b].mean()), int((place == b).sum()))
        for b in range(BINS)
        if (place == b).any()
    ]
    ece = sum(each.n * abs(each.accuracy - each.confidence) for each in bins) / len(sure)
    return Calibration(float(ece), len(sure), bins)
