"""Means and differences over several runs, against a slow and plain bootstrap."""

import numpy as np
import pytest

from metrics.intervals import bootstrap_mean, paired_change
from metrics.over_runs import (
    Matrix,
    difference_over_runs,
    mean_over_runs,
    resample_runs,
    share_first,
)

RNG = np.random.default_rng(5)


def make_runs(runs: int, examples: int, spread: float, noise: float = 0.2) -> Matrix:
    """Runs that differ by `spread` as a whole, over examples that differ by 0.3."""
    own = RNG.normal(0, spread, (runs, 1))
    return 0.5 + own + RNG.normal(0, 0.3, (1, examples)) + RNG.normal(0, noise, (runs, examples))


def slow_interval(values: Matrix, resamples: int) -> tuple[float, float]:
    """Draw runs and examples one by one; runs are stretched by sqrt(k / (k - 1)) before."""
    rng = np.random.default_rng(11)
    runs, examples = values.shape
    centre = values.mean(axis=0)
    means = []
    for _ in range(resamples):
        chosen = [int(rng.integers(runs)) for _ in range(runs)]
        drawn = rng.integers(examples, size=examples)
        total = 0.0
        for run in chosen:
            stretched = centre + (values[run] - centre) * (runs / (runs - 1)) ** 0.5
            total += float(stretched[drawn].mean())
        means.append(total / runs)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def test_one_run_is_a_bootstrap_over_its_examples() -> None:
    (one,), (two,) = make_runs(1, 40, 0), make_runs(1, 40, 0)
    assert mean_over_runs(one[None]) == bootstrap_mean(one.tolist())
    assert difference_over_runs(one[None], two[None]) == paired_change(one.tolist(), two.tolist())


@pytest.mark.parametrize("runs", [2, 3, 5])
def test_the_interval_is_that_of_the_slow_bootstrap(runs: int) -> None:
    values = make_runs(runs, 60, 0.1)
    found = mean_over_runs(values, resamples=4000)
    low, high = slow_interval(values, 4000)
    assert found.value == pytest.approx(values.mean())
    assert found.n == 60
    # Two random draws of the same thing: their ends differ by a few per cent of the width.
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.05 * (high - low))


def test_of_two_runs_the_interval_has_their_full_variance() -> None:
    """Examples that all say the same leave the runs alone: s^2 / 2, and not half of it."""
    values = np.array([[0.4] * 50, [0.6] * 50])
    (means,) = resample_runs([values], resamples=20_000)
    assert means.var() == pytest.approx(values[:, 0].var(ddof=1) / 2, rel=0.05)


def test_runs_of_other_seeds_widen_the_interval() -> None:
    values = make_runs(4, 200, 0.15)
    wide, narrow = mean_over_runs(values), bootstrap_mean(values.mean(axis=0).tolist())
    assert wide.low is not None
    assert wide.high is not None
    assert narrow.low is not None
    assert narrow.high is not None
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)


def test_pairing_by_seed_takes_what_the_seeds_share_out() -> None:
    seeds = RNG.normal(0, 0.2, (4, 1))
    before = 0.5 + seeds + RNG.normal(0, 0.1, (4, 80))
    after = before + 0.05
    paired = difference_over_runs(before, after, paired=True)
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


def test_one_example_has_no_interval() -> None:
    found = mean_over_runs(np.array([[0.4], [0.6]]))
    assert (found.value, found.n, found.low) == (pytest.approx(0.5), 1, None)
    assert difference_over_runs(np.array([[0.4]]), np.array([[0.5], [0.7]])).low is None
