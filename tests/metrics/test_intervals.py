import math

import numpy as np
import pytest

from metrics.intervals import (
    Array,
    Estimate,
    bootstrap_crossed,
    bootstrap_mean,
    bootstrap_std,
    difference_over_runs,
    paired_change,
)


def test_constants_have_an_interval_without_width() -> None:
    assert bootstrap_mean([0.25] * 8) == Estimate(0.25, 8, 0.25, 0.25)


def test_two_opposite_values_reach_both_ends() -> None:
    # Resample means are 0, 1/2, 1 with probabilities 1/4, 1/2, 1/4: both tails are past 2.5 %.
    assert bootstrap_mean([0, 1]) == Estimate(0.5, 2, 0.0, 1.0)


def test_one_example_has_no_interval() -> None:
    assert bootstrap_mean([0.7]) == Estimate(0.7, 1, None, None)


def slow_interval(values: list[float], resamples: int, seed: int) -> tuple[float, float]:
    """Resample one example at a time; ends between order statistics in proportion."""
    rng = np.random.default_rng(seed)
    means = sorted(
        sum(values[place] for place in rng.integers(len(values), size=len(values))) / len(values)
        for _ in range(resamples)
    )

    def at(share: float) -> float:
        place = share * (resamples - 1)
        below = math.floor(place)
        above = min(below + 1, resamples - 1)
        return means[below] + (place - below) * (means[above] - means[below])

    return at(0.025), at(0.975)


def test_interval_is_that_of_a_slow_bootstrap() -> None:
    values = [0.9, 0.1, 0.4, 0.35, 0.8, 0.0, 0.2]
    estimate = bootstrap_mean(values, resamples=200, seed=3)
    assert (estimate.low, estimate.high) == pytest.approx(slow_interval(values, 200, 3), abs=1e-12)


def test_interval_covers_the_true_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(300):
        estimate = bootstrap_mean(rng.beta(2, 5, size=60).tolist())  # skewed, as ROUGE-2 is
        assert estimate.low is not None
        assert estimate.high is not None
        hits += estimate.low <= 2 / 7 <= estimate.high
    assert 0.91 <= hits / 300 <= 0.98


def test_the_seed_decides() -> None:
    values = [0.1, 0.5, 0.2, 0.9, 0.4]
    assert bootstrap_mean(values, seed=1) == bootstrap_mean(values, seed=1)
    assert bootstrap_mean(values, seed=1) != bootstrap_mean(values, seed=2)


def test_standard_deviation_by_hand() -> None:
    # Resamples of [0, 1]: 00, 01, 10 and 11 have deviations 0, 1/2, 1/2 and 0.
    assert bootstrap_std([0, 1]) == Estimate(0.5, 2, 0.0, 0.5)
    assert bootstrap_std([3.0]) == Estimate(0.0, 1)


def test_paired_change_is_after_minus_before() -> None:
    # Each example falls by exactly 1, so the change has no spread although the values have.
    assert paired_change([1, 5, 3], [0, 4, 2]) == Estimate(-1.0, 3, -1.0, -1.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [([], "at least one example"), ([0.5, math.nan, math.inf], "2 of 3 values .* position 1")],
)
def test_refuses_what_has_no_mean(values: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bootstrap_mean(values)


def test_refuses_unpaired_lengths() -> None:
    with pytest.raises(ValueError, match="2 before and 1 after"):
        paired_change([1, 2], [1])


# Runs by examples -------------------------------------------------------------------------------


def test_runs_that_differ_and_examples_that_do_not() -> None:
    """Two runs that differ by a constant: resampled means are 0, 1/2, 1 as often as 1, 2, 1."""
    estimate = bootstrap_crossed([[0.0] * 50, [1.0] * 50])
    assert estimate == Estimate(0.5, 50, 0.0, 1.0)


def test_equal_runs_are_as_sure_as_one() -> None:
    values = np.tile([0.0, 1.0], 500)
    one, five = bootstrap_crossed([values.tolist()]), bootstrap_crossed([values.tolist()] * 5)
    assert one == bootstrap_mean(values.tolist())
    assert five.value == 0.5
    assert five.n == 1000
    assert five.low == pytest.approx(one.low, abs=0.004)
    assert five.high == pytest.approx(one.high, abs=0.004)


def test_crossed_interval_is_that_of_a_slow_bootstrap() -> None:
    """Runs and examples drawn one at a time; 4,000 resamples leave an error of about 0.02."""
    draw = np.random.default_rng(3)
    values = draw.normal(size=(4, 1)) + draw.normal(size=(1, 12)) + 0.5 * draw.normal(size=(4, 12))
    means = []
    for _ in range(4000):
        runs = draw.integers(4, size=4)
        examples = draw.integers(12, size=12)
        means.append(np.mean([values[run][example] for run in runs for example in examples]))
    fast = bootstrap_crossed(values.tolist(), resamples=4000)
    assert fast.value == pytest.approx(values.mean())
    for end, percent in ((fast.low, 2.5), (fast.high, 97.5)):
        assert end == pytest.approx(np.percentile(means, percent), abs=0.06)
    narrow = bootstrap_mean(values.mean(axis=0).tolist(), resamples=4000)
    assert narrow.low is not None
    assert fast.low is not None
    assert fast.low < narrow.low - 0.1  # which knows nothing of the runs


def test_runs_on_other_examples_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must have the same examples, got \[2, 1\]"):
        bootstrap_crossed([[0.0, 1.0], [0.0]])
    with pytest.raises(ValueError, match="at least one example"):
        bootstrap_crossed([])
    with pytest.raises(ValueError, match="not finite"):
        bootstrap_crossed([[0.0, math.nan], [0.0, 1.0]])


# Differences of methods ---------------------------------------------------------------------------

RNG = np.random.default_rng(5)


def make_runs(runs: int, examples: int, spread: float, noise: float = 0.2) -> Array:
    """Runs that differ by `spread` as a whole, over examples that differ by 0.3."""
    own = RNG.normal(0, spread, (runs, 1))
    return 0.5 + own + RNG.normal(0, 0.3, (1, examples)) + RNG.normal(0, noise, (runs, examples))


def slow_difference(before: Array, after: Array, resamples: int) -> tuple[float, float]:
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
    low, high = slow_difference(before, after, 4000)
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


def test_what_has_no_interval_and_what_has_no_mean() -> None:
    assert difference_over_runs(np.array([[0.4]]), np.array([[0.5], [0.7]])).low is None
    with pytest.raises(ValueError, match="not finite"):
        difference_over_runs(np.array([[0.4, 0.1]]), np.array([[0.5, 0.1], [0.7, math.nan]]))
