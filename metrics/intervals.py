"""Means and standard deviations with bootstrap intervals.

Percentile bootstrap (Efron & Tibshirani 1993, chapter 13): resample the examples with replacement,
take the statistic of each resample, and read the 2.5 and 97.5 percentiles. It makes no assumption
about the distribution, which matters for ROUGE (bounded) and toxicity (close to 0 or 1). It covers
the choice of test examples.

With several training runs on the same examples it covers the choice of the seed as well: runs and
examples are resampled independently (the pigeonhole bootstrap: Owen 2007, "The pigeonhole
bootstrap", Annals of Applied Statistics 1(2)). It is conservative for the examples, and a handful
of runs says little about how much seeds can differ.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


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


# One run ------------------------------------------------------------------------------------------


def bootstrap_mean(values: Sequence[float], resamples: int = 1000, seed: int = 0) -> Estimate:
    """Estimate a mean and its 95 % percentile bootstrap interval.

    Args:
        values: One number per example [n].
        resamples: Number of bootstrap resamples.
        seed: Seed of the resampling; the same values and seed give the same interval.

    Returns:
        The estimate; without an interval for a single example, which has no spread.

    Raises:
        ValueError: `values` is empty or has a number that is not finite.
    """
    array = _to_array(values)
    return _estimate(array.mean(), len(array), _resample_means(array, resamples, seed))


def bootstrap_std(values: Sequence[float], resamples: int = 1000, seed: int = 0) -> Estimate:
    """Estimate a standard deviation and its 95 % percentile bootstrap interval.

    The squared distances from the mean are divided by n, as ``np.std`` does. Arguments, result and
    errors are those of `bootstrap_mean`.
    """
    array = _to_array(values)
    centered = array - array.mean()  # so that the difference of squares keeps its digits
    squares = _resample_means(centered**2, resamples, seed)
    variances = squares - _resample_means(centered, resamples, seed) ** 2
    return _estimate(array.std(), len(array), np.sqrt(np.maximum(variances, 0)))


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


def bootstrap_statistics(
    statistics: Callable[[NDArray[np.int64]], Sequence[float]],
    n: int,
    resamples: int = 1000,
    seed: int = 0,
) -> list[Estimate]:
    """Estimate statistics that are not means, and their 95 % percentile bootstrap intervals.

    Args:
        statistics: Takes the numbers of the examples to use, [n] with repetitions, and returns
            S values.
        n: Number of examples.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resampling.

    Returns:
        S estimates.
    """
    rng = np.random.default_rng(seed)
    resampled = np.array([statistics(rng.integers(n, size=n)) for _ in range(resamples)])
    values = statistics(np.arange(n))
    return [_estimate(value, n, resampled[:, i]) for i, value in enumerate(values)]


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


# Several runs -------------------------------------------------------------------------------------


def bootstrap_crossed(
    values: Sequence[Sequence[float]], resamples: int = 1000, seed: int = 0
) -> Estimate:
    """Estimate the mean over several runs on the same examples, and its 95 % interval.

    Args:
        values: One number per run and example [runs, n].
        resamples: Number of bootstrap resamples.
        seed: Seed of the resampling.

    Returns:
        The estimate, with the number of examples as its n; for a single run that of
        `bootstrap_mean`.

    Raises:
        ValueError: The runs differ in their number of examples, or as for `bootstrap_mean`.
    """
    if len({len(run) for run in values}) > 1:
        raise ValueError(
            f"The runs must have the same examples, got {[len(run) for run in values]} of them."
        )
    if len(values) < 2:
        return bootstrap_mean(values[0] if values else [], resamples, seed)
    runs = np.asarray(values, dtype=np.float64)
    mean = _to_array(runs.mean(axis=0)).mean()
    (means,) = resample_runs([runs], resamples, seed)
    return _estimate(mean, runs.shape[1], means)


def difference_over_runs(
    before: Array, after: Array, paired: bool = False, resamples: int = 1000, seed: int = 0
) -> Estimate:
    """Estimate the mean of after - before on the same examples, with its interval.

    Args:
        before: Runs of one method, [K, n].
        after: Runs of another on the same examples, [L, n].
        paired: Whether row k of both belongs together, like runs with the same seed.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resampling.

    Returns:
        The estimate, with the number of examples as its n; for single runs that of
        `paired_change`.

    Raises:
        ValueError: As for `bootstrap_mean`.
    """
    if paired or len(before) == len(after) == 1:
        return bootstrap_crossed((after - before).tolist(), resamples, seed)
    difference = _to_array(after.mean(axis=0) - before.mean(axis=0))
    one, two = resample_runs([before, after], resamples, seed)
    return _estimate(difference.mean(), len(difference), two - one)


def resample_runs(methods: Sequence[Array], resamples: int = 1000, seed: int = 0) -> list[Array]:
    """Return resampled means of methods, each with its own runs, on shared examples.

    Differences in the difficulty of examples cancel, because the methods share them.

    Args:
        methods: Each method's runs, [K, n]; K differs, n does not.
        resamples: Number of bootstrap resamples R.
        seed: Seed of the resampling.

    Returns:
        R means per method.
    """
    rng = np.random.default_rng([seed, 1])
    n = methods[0].shape[1]
    found = []
    for values in methods:
        runs = len(values)
        means = draw_counts(n, resamples, seed) @ values.T / n  # [R, K]
        shares = rng.multinomial(runs, np.full(runs, 1 / runs), size=resamples) / runs
        found.append((shares * means).sum(axis=1))
    return found


# Resampling ---------------------------------------------------------------------------------------


@lru_cache(
    maxsize=2
)  # a comparison computes hundreds of intervals over the same number of examples
def draw_counts(n: int, resamples: int, seed: int) -> Array:
    """Count how often each of n examples is drawn, in R draws of n with replacement.

    Args:
        n: Number of examples.
        resamples: Number of resamples R.
        seed: Seed of the draws.

    Returns:
        The counts [R, n]: 8 MB for each 1,000 examples and 1,000 resamples.
    """
    rng = np.random.default_rng(seed)
    rows = [np.bincount(rng.integers(n, size=n), minlength=n) for _ in range(resamples)]
    return np.stack(rows).astype(np.float64)


def _resample_means(array: Array, resamples: int, seed: int) -> Array:
    """Return the mean of an array [n] in each of R resamples: [R]."""
    # Row by row, so that a row's last digit does not depend on the number of rows.
    return np.einsum("rn,n->r", draw_counts(len(array), resamples, seed), array) / len(array)


def _estimate(value: float, n: int, resampled: Array) -> Estimate:
    """Combine a statistic with its interval; a single example has none."""
    if n == 1:
        return Estimate(float(value), n)
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Estimate(float(value), n, float(low), float(high))


def _to_array(values: Sequence[float] | Array) -> Array:
    """Convert values to an array.

    Raises:
        ValueError: There is no value, or one is not finite.
    """
    array: Array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        raise ValueError("A statistic needs at least one example, got none.")
    bad = np.flatnonzero(~np.isfinite(array))
    if bad.size:
        raise ValueError(
            f"{bad.size} of {array.size} values are not finite, the first {array[bad[0]]} at "
            f"position {bad[0]}; find what produced it before averaging."
        )
    return array
