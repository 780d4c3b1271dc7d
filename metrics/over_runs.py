"""Differences between methods with several training runs on the same examples.

As in :func:`metrics.intervals.bootstrap_crossed`, runs and examples are resampled independently.
The compared methods share the resampled examples, so that differences in difficulty cancel; their
runs are resampled separately, unless they are paired.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from metrics.intervals import Estimate, bootstrap_crossed, bootstrap_mean, draw_counts

Matrix = NDArray[np.float64]


def difference_over_runs(
    before: Matrix, after: Matrix, paired: bool = False, resamples: int = 1000, seed: int = 0
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
    mean = (after.mean(axis=0) - before.mean(axis=0)).tolist()
    centre = bootstrap_mean(mean, resamples=1)  # rejects values that are not finite
    if centre.low is None:
        return centre
    one, two = resample_runs([before, after], resamples, seed)
    low, high = np.percentile(two - one, [2.5, 97.5])
    return Estimate(centre.value, centre.n, float(low), float(high))


def resample_runs(
    methods: Sequence[Matrix], resamples: int = 1000, seed: int = 0
) -> list[NDArray[np.float64]]:
    """Return resampled means of methods: own runs, the same examples for all.

    Args:
        methods: Each method's runs, [K, n]; K differs, n does not.
        resamples: Number of bootstrap resamples R.
        seed: Seed of the resampling.

    Returns:
        R means per method.
    """
    of_runs = np.random.default_rng([seed, 1])
    parts = [
        [counts @ values.T / values.shape[1] for values in methods]
        for counts in draw_counts(methods[0].shape[1], resamples, seed)
    ]
    means = [np.concatenate(own) for own in zip(*parts, strict=True)]
    return [_draw_runs(found, of_runs) for found in means]


def _draw_runs(means: Matrix, rng: np.random.Generator) -> NDArray[np.float64]:
    """Average over resampled runs in each resample: [R, K] to [R]."""
    resamples, runs = means.shape
    shares = rng.multinomial(runs, np.full(runs, 1 / runs), size=resamples) / runs
    return (shares * means).sum(axis=1)


def share_first(methods: Sequence[Matrix], first: int, resamples: int = 1000) -> float:
    """Return the share of resamples in which one method has the highest mean.

    Args:
        methods: Each method's runs on the same examples, [K, n].
        first: Index of that method.
        resamples: Number of bootstrap resamples.

    Returns:
        A fraction of 1; ties count half.
    """
    means = np.stack(resample_runs(methods, resamples))
    others = np.delete(means, first, axis=0).max(axis=0)
    return float(((means[first] > others) + 0.5 * (means[first] == others)).mean())
