"""Differences over several runs, against a slow and plain bootstrap."""

import math

import numpy as np
import pytest

from metrics.intervals import bootstrap_crossed, paired_change
from metrics.over_runs import Matrix, difference_over_runs, resample_runs, share_first

RNG = np.random.default_rng(5)


def make_runs(runs: int, examples: int, spread: float, noise: float = 0.2) -> Matrix:
    """Runs that differ by `spread` as a whole, over examples that differ by 0.3."""
    own = RNG.normal(0, spread, (runs, 1))
    return 0.5 + own + RNG.normal(0, 0.3, (1, examples)) + RNG.normal(0, noise, (runs, examples))


def slow_interval(before: Matrix, after: Matrix, resamples: int) -> tuple[float, float]:
    """Draw runs of each side and examples of both, one by one."""
    rng = np.random.default_rng(11)
    gaps = []
    for _ in range(resamples):
        drawn = rng.integers(before.shape[1], size=before.shape[1])
        means = []
        for side in (before, after):
            chosen = [int(rng.integers(len(side))) for _ in side]
            means.append(np.mean([side[run][drawn] for run in chosen]))
        gaps.append(means[1] - means[0])
    low, high = np.percentile(gaps, [2.5, 97.5])
    return float(low), float(high)


def test_single_runs_are_paired_by_example_as_ever() -> None:
    (one,), (two,) = make_runs(1, 40, 0), make_runs(1, 40, 0)
    assert difference_over_runs(one[None], two[None]) == paired_change(one.tolist(), two.tolist())


@pytest.mark.parametrize(("runs", "others"), [(2, 3), (1, 4), (5, 5)])
def test_the_interval_is_that_of_the_slow_bootstrap(runs: int, others: int) -> None:
    before, after = make_runs(runs, 60, 0.1), make_runs(others, 60, 0.1)
    found = difference_over_runs(before, after, resamples=4000)
    low, high = slow_interval(before, after, 4000)
    assert found.value == pytest.approx(after.mean() - before.mean())
    assert found.n == 60
    # Two random draws of the same thing: their ends differ by a few per cent of the width.
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.06 * (high - low))


def test_pairing_by_seed_takes_what_the_seeds_share_out() -> None:
    seeds = RNG.normal(0, 0.2, (4, 1))
    before = 0.5 + seeds + RNG.normal(0, 0.1, (4, 80))
    after = before + 0.05
    paired = difference_over_runs(before, after, paired=True)
    assert paired == bootstrap_crossed((after - before).tolist())
    assert (paired.low, paired.high) == pytest.approx((0.05, 0.05))
    apart = difference_over_runs(before, after)
    assert apart.value == pytest.approx(0.05)
    assert apart.low is not None
    assert apart.low < 0


def test_examples_are_shared_also_where_runs_are_not() -> None:
    """What is hard for one is hard for the other: that cancels in the difference."""
    examples = RNG.normal(0, 0.3, 300)
    before = np.tile(0.4 + examples, (2, 1))
    after = np.tile(0.5 + examples, (3, 1))
    found = difference_over_runs(before, after)
    assert (found.value, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1))


def test_share_first_counts_resamples() -> None:
    low, high = make_runs(1, 50, 0), make_runs(1, 50, 0) + 1
    assert share_first([high, low], 0) == 1
    assert share_first([high, low], 1) == 0
    assert share_first([low, low], 0) == 0.5
    one, two = resample_runs([low, high - 1])
    assert share_first([low, high - 1], 0) == pytest.approx((one > two).mean())


def test_what_has_no_interval_and_what_has_no_mean() -> None:
    assert difference_over_runs(np.array([[0.4]]), np.array([[0.5], [0.7]])).low is None
    with pytest.raises(ValueError, match="not finite"):
        difference_over_runs(np.array([[0.4, 0.1]]), np.array([[0.5, 0.1], [0.7, math.nan]]))
