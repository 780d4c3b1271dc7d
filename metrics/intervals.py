"""Means with bootstrap intervals.

Percentile bootstrap (Efron & Tibshirani 1993, chapter 13): resample the examples with replacement,
take the mean of each resample, and read the 2.5 and 97.5 percentiles. It makes no assumption about
the distribution, which matters for ROUGE (bounded) and toxicity (close to 0 or 1). It covers the
choice of test examples, not the choice of training seed.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# Numbers drawn at once: bounds memory (8 bytes each) whatever the number of examples.
_DRAWS_AT_ONCE = 4_000_000


class Estimate(NamedTuple):
    """A metric's final value.

    Attributes:
        value: The mean over examples, or a single logged number.
        n: Number of examples behind it; None where it is unknown.
        low: Lower end of the 95 % interval; None where there is none.
        high: Upper end.
    """

    value: float
    n: int | None = None
    low: float | None = None
    high: float | None = None


def bootstrap_mean(values: Sequence[float], resamples: int = 1000, seed: int = 0) -> Estimate:
    """Estimate a mean and its 95 % percentile bootstrap interval.

    Args:
        values: One number per example [n].
        resamples: Number of bootstrap resamples.
        seed: Seed of the resampling; the same values and seed give the same interval.

    Returns:
        The estimate; without an interval for a single example, which has no spread.

    Raises:
        ValueError: `values` is empty or holds a number that is not finite.
    """
    array: NDArray[np.float64] = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        raise ValueError("A mean needs at least one example, got none.")
    bad = np.flatnonzero(~np.isfinite(array))
    if bad.size:
        raise ValueError(
            f"{bad.size} of {array.size} values are not finite, the first {array[bad[0]]} at "
            f"position {bad[0]}; find what produced it before averaging."
        )
    n = int(array.size)
    if n == 1:
        return Estimate(float(array[0]), 1)
    means = resample_means(array[None], resamples, seed)[:, 0]
    low, high = np.percentile(means, [2.5, 97.5])
    return Estimate(float(array.mean()), n, float(low), float(high))


def resample_means(
    values: NDArray[np.float64], resamples: int = 1000, seed: int = 0
) -> NDArray[np.float64]:
    """Take the mean of each row over the same resampled columns.

    Args:
        values: M rows of one number per example, [M, n].
        resamples: Number of bootstrap resamples R.
        seed: Seed of the resampling; all rows, and all calls with the same n, share the draws.

    Returns:
        Means [R, M].
    """
    rows, n = values.shape
    rng = np.random.default_rng(seed)
    means = np.empty((resamples, rows))
    step = max(1, _DRAWS_AT_ONCE // n)
    for start in range(0, resamples, step):
        stop = min(start + step, resamples)
        drawn = rng.integers(n, size=(stop - start, n))
        for row, own in enumerate(values):
            means[start:stop, row] = own[drawn].mean(axis=1)
    return means


def paired_change(
    before: Sequence[float], after: Sequence[float], resamples: int = 1000, seed: int = 0
) -> Estimate:
    """Estimate the mean of after - before over the same examples.

    Args:
        before: One number per example [n].
        after: One number per example [n], in the same order.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resampling.

    Returns:
        The mean difference; its interval is usually far narrower than that of two separate means.

    Raises:
        ValueError: The lengths differ, or as for `bootstrap_mean`.
    """
    if len(before) != len(after):
        raise ValueError(
            f"A paired change needs the same examples on both sides, got {len(before)} before and "
            f"{len(after)} after."
        )
    difference = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    return bootstrap_mean(difference.tolist(), resamples, seed)
