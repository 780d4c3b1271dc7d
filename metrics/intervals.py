"""Means and standard deviations with bootstrap intervals.

Percentile bootstrap (Efron & Tibshirani 1993, chapter 13): resample the examples with replacement,
take the statistic of each resample, and read the 2.5 and 97.5 percentiles. It makes no assumption
about the distribution, which matters for ROUGE (bounded) and toxicity (close to 0 or 1). It covers
the choice of test examples, not the choice of training seed.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# Numbers drawn at once (8 bytes each), which bounds memory for any number of examples.
_DRAWS_AT_ONCE = 4_000_000

# Counts that are cached for the next call: those of 1,000 resamples of 12,000 examples. A
# comparison computes hundreds of intervals over the same number of examples.
_COUNTS_KEPT = 12_000_000


class Estimate(NamedTuple):
    """A metric's final value.

    Attributes:
        value: A statistic over examples, mostly their mean, or a single logged number.
        n: Number of examples; None if unknown.
        low: Lower end of the 95 % interval; None if there is none.
        high: Upper end.
    """

    value: float
    n: int | None = None
    low: float | None = None
    high: float | None = None

    def scaled(self, factor: float) -> "Estimate":
        """Return the estimate in another unit, such as percent."""
        low, high = (None if end is None else factor * end for end in (self.low, self.high))
        return Estimate(factor * self.value, self.n, low, high)


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
    array = _take(values)
    n = len(array)
    means = [_means(counts, array) for counts in draw_counts(n, resamples, seed)] if n > 1 else []
    return _estimate(float(array.mean()), n, means)


def bootstrap_std(values: Sequence[float], resamples: int = 1000, seed: int = 0) -> Estimate:
    """Estimate a standard deviation and its 95 % percentile bootstrap interval.

    The squared distances from the mean are divided by n, as ``np.std`` does.

    Args:
        values: One number per example [n].
        resamples: Number of bootstrap resamples.
        seed: Seed of the resampling.

    Returns:
        The estimate; 0 without an interval for a single example.

    Raises:
        ValueError: As for `bootstrap_mean`.
    """
    array = _take(values)
    n = len(array)
    centered = array - array.mean()  # so that the difference of squares keeps its digits
    variances = [
        _means(counts, centered**2) - _means(counts, centered) ** 2
        for counts in (draw_counts(n, resamples, seed) if n > 1 else ())
    ]
    return _estimate(float(array.std()), n, [np.sqrt(np.maximum(one, 0)) for one in variances])


def draw_counts(n: int, resamples: int, seed: int) -> Iterable[NDArray[np.float64]]:
    """Count how often each of n examples is drawn, in R draws of n with replacement.

    Args:
        n: Number of examples.
        resamples: Number of resamples R.
        seed: Seed of the draws.

    Returns:
        The counts [R, n] in chunks of rows, which bounds memory for any n.
    """
    if n * resamples <= _COUNTS_KEPT:
        return (_kept_counts(n, resamples, seed),)
    return _count_draws(n, resamples, seed)


@lru_cache(maxsize=2)
def _kept_counts(n: int, resamples: int, seed: int) -> NDArray[np.float64]:
    return np.concatenate(list(_count_draws(n, resamples, seed)))


def _count_draws(n: int, resamples: int, seed: int) -> Iterator[NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    step = max(1, _DRAWS_AT_ONCE // n)
    for start in range(0, resamples, step):
        drawn = rng.integers(n, size=(min(step, resamples - start), n))
        yield np.stack([np.bincount(row, minlength=n) for row in drawn]).astype(np.float64)


def _means(counts: NDArray[np.float64], array: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean of an array [n] in each resample: counts [R, n] to [R]."""
    # Row by row, so that a row's last digit does not depend on the number of rows.
    return np.einsum("rn,n->r", counts, array) / len(array)


def _estimate(value: float, n: int, resampled: Sequence[NDArray[np.float64]]) -> Estimate:
    """Combine a statistic with its interval, if there are resampled values."""
    if not resampled:
        return Estimate(value, n)
    low, high = np.percentile(np.concatenate(resampled), [2.5, 97.5])
    return Estimate(value, n, float(low), float(high))


def _take(values: Sequence[float]) -> NDArray[np.float64]:
    """Convert values to an array.

    Raises:
        ValueError: There is no value, or one is not finite.
    """
    array: NDArray[np.float64] = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        raise ValueError("A statistic needs at least one example, got none.")
    bad = np.flatnonzero(~np.isfinite(array))
    if bad.size:
        raise ValueError(
            f"{bad.size} of {array.size} values are not finite, the first {array[bad[0]]} at "
            f"position {bad[0]}; find what produced it before averaging."
        )
    return array


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


def estimate_columns(columns: Mapping[str, Sequence[float]]) -> dict[str, Estimate]:
    """Estimate the mean of each column and paired changes from "<name>_before".

    Args:
        columns: One number per example [n] by name, the examples in the same order in each.

    Returns:
        Each column's mean under its name, and as "<name>_change" the mean of after - before if
        there is such a column.
    """
    found = {name: bootstrap_mean(values) for name, values in columns.items()}
    for name, values in columns.items():
        if before := columns.get(f"{name}_before"):
            found[f"{name}_change"] = paired_change(before, values)
    return found


def bootstrap_crossed(
    values: Sequence[Sequence[float]], resamples: int = 1000, seed: int = 0
) -> Estimate:
    """Estimate the mean over several runs on the same examples, and its 95 % interval.

    Each resample draws runs and, independently, examples with replacement, and takes the mean over
    the drawn pairs (the pigeonhole bootstrap: Owen 2007, "The pigeonhole bootstrap", Annals of
    Applied Statistics 1(2)). The interval covers the choice of the training seed as well as that
    of the examples. It is conservative for the examples, and a handful of runs says little about
    how much seeds can differ; with a single run it covers the examples only.

    Args:
        values: One number per run and example [runs, n].
        resamples: Number of bootstrap resamples.
        seed: Seed of the resampling.

    Returns:
        The estimate, with the number of examples as its n.

    Raises:
        ValueError: The runs differ in their number of examples, or as for `bootstrap_mean`.
    """
    if len({len(run) for run in values}) > 1:
        raise ValueError(
            f"The runs must have the same examples, got {[len(run) for run in values]} of them."
        )
    if len(values) < 2:
        return bootstrap_mean(values[0] if values else [], resamples, seed)
    array: NDArray[np.float64] = np.asarray(values, dtype=np.float64)
    plain = bootstrap_mean(
        array.mean(axis=0).tolist(), resamples=1
    )  # rejects values that are not finite
    runs, n = array.shape
    rng = np.random.default_rng(seed)
    # How often each run and each example is drawn, as shares.
    of_runs = rng.multinomial(runs, np.full(runs, 1 / runs), size=resamples) / runs
    means = np.empty(resamples)
    step = max(1, _DRAWS_AT_ONCE // n)
    for start in range(0, resamples, step):
        rows = slice(start, min(start + step, resamples))
        size = rows.stop - rows.start
        of_examples = rng.multinomial(n, np.full(n, 1 / n), size=size) / n
        means[rows] = ((of_runs[rows] @ array) * of_examples).sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Estimate(plain.value, n, float(low), float(high))
