"""Means and differences over several training runs of one method, on the same test examples.

With one run an interval covers the choice of test examples. With several it has to cover the
choice of training seed too: runs and examples are resampled independently of each other, crossed
as they are (Owen 2007, "The pigeonhole bootstrap"). Resampling k runs gives only (k - 1) / k of
their variance, which is much where k is 2 or 3, so the runs' deviations from their mean are
stretched by sqrt(k / (k - 1)) first (Rao and Wu 1988). Of two or three runs an interval stays a
rough one all the same: look at the runs one by one.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from metrics.intervals import Estimate, bootstrap_mean, resample_means

Matrix = NDArray[np.float64]


def mean_over_runs(values: Matrix, resamples: int = 1000, seed: int = 0) -> Estimate:
    """Estimate the mean of K runs over n examples, and its 95 % interval.

    Args:
        values: One row for each run, one column for each example, [K, n].
        resamples: Number of bootstrap resamples.
        seed: Seed of the resampling.

    Returns:
        The estimate; for a single run that of `bootstrap_mean`.

    Raises:
        ValueError: As for `bootstrap_mean`.
    """
    centre = bootstrap_mean(values.mean(axis=0).tolist(), resamples, seed)
    if len(values) == 1 or centre.low is None:
        return centre
    return _estimate(centre, resample_runs([values], resamples, seed)[0])


def difference_over_runs(
    before: Matrix, after: Matrix, paired: bool = False, resamples: int = 1000, seed: int = 0
) -> Estimate:
    """Estimate the mean of after - before over the same examples.

    Args:
        before: Runs of one method, [K, n].
        after: Runs of another on the same examples, [L, n].
        paired: Whether row k of both belongs together, as runs of the same seed do.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resampling.

    Returns:
        The estimate; for single runs that of `paired_change`.

    Raises:
        ValueError: As for `bootstrap_mean`.
    """
    if paired or len(before) == len(after) == 1:
        return mean_over_runs(after - before, resamples, seed)
    mean = (after.mean(axis=0) - before.mean(axis=0)).tolist()
    centre = bootstrap_mean(mean, resamples, seed)
    if centre.low is None:
        return centre
    one, two = resample_runs([before, after], resamples, seed)
    return _estimate(centre, two - one)


def resample_runs(
    methods: Sequence[Matrix], resamples: int = 1000, seed: int = 0
) -> list[NDArray[np.float64]]:
    """Take the mean of each method over resampled runs of its own and the same resampled examples.

    Args:
        methods: Each method's runs, [K, n]; K differs, n does not.
        resamples: Number of bootstrap resamples R.
        seed: Seed of the resampling.

    Returns:
        For each method its R means.
    """
    rng = np.random.default_rng([seed, 1])  # another stream than that of the examples
    found = []
    for values in methods:
        runs = len(values)
        means = resample_means(_stretch(values), resamples, seed)
        weights = rng.multinomial(runs, [1 / runs] * runs, size=resamples) / runs
        found.append((weights * means).sum(axis=1))
    return found


def share_first(methods: Sequence[Matrix], first: int, resamples: int = 1000) -> float:
    """Say in which share of the resamples one method has the highest mean of all.

    Args:
        methods: Each method's runs on the same examples, [K, n].
        first: Which of them it is about.
        resamples: Number of bootstrap resamples.

    Returns:
        A share of 1; what comes out even counts half.
    """
    means = np.stack(resample_runs(methods, resamples))
    others = np.delete(means, first, axis=0).max(axis=0)
    return float(((means[first] > others) + 0.5 * (means[first] == others)).mean())


def _stretch(values: Matrix) -> Matrix:
    runs = len(values)
    if runs == 1:
        return values
    centre = values.mean(axis=0)
    return centre + np.sqrt(runs / (runs - 1)) * (values - centre)


def _estimate(centre: Estimate, means: NDArray[np.float64]) -> Estimate:
    low, high = np.percentile(means, [2.5, 97.5])
    return Estimate(centre.value, centre.n, float(low), float(high))
