import math

import numpy as np
import pytest

from metrics import intervals
from metrics.intervals import Estimate, bootstrap_crossed, bootstrap_mean, paired_change


def test_constants_have_an_interval_without_width() -> None:
    assert bootstrap_mean([0.25] * 8) == Estimate(0.25, 8, 0.25, 0.25)


def test_two_opposite_values_reach_both_ends() -> None:
    # Resample means are 0, 1/2, 1 with probabilities 1/4, 1/2, 1/4: both tails are past 2.5 %.
    assert bootstrap_mean([0, 1]) == Estimate(0.5, 2, 0.0, 1.0)


def test_one_example_has_no_interval() -> None:
    assert bootstrap_mean([0.7]) == Estimate(0.7, 1, None, None)


def test_many_examples_agree_with_the_central_limit() -> None:
    values = np.tile([0.0, 1.0], 500)  # standard deviation 1/2, standard error 0.5 / sqrt(1000)
    estimate = bootstrap_mean(values.tolist(), resamples=4000)
    half_width = 1.96 * 0.5 / math.sqrt(1000)
    assert estimate.value == 0.5
    assert estimate.low == pytest.approx(0.5 - half_width, abs=0.003)
    assert estimate.high == pytest.approx(0.5 + half_width, abs=0.003)


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


def test_seed_decides_and_memory_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [0.1, 0.5, 0.2, 0.9, 0.4]
    whole = bootstrap_mean(values, seed=1)
    assert whole != bootstrap_mean(values, seed=2)
    monkeypatch.setattr(intervals, "_DRAWS_AT_ONCE", 35)
    monkeypatch.setattr(intervals, "_COUNTS_KEPT", 0)
    assert bootstrap_mean(values, seed=1) == whole


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


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=(3, 40)).tolist()
    whole = bootstrap_crossed(values)
    monkeypatch.setattr(intervals, "_DRAWS_AT_ONCE", 90)
    assert bootstrap_crossed(values) == whole


def test_runs_on_other_examples_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must have the same examples, got \[2, 1\]"):
        bootstrap_crossed([[0.0, 1.0], [0.0]])
    with pytest.raises(ValueError, match="at least one example"):
        bootstrap_crossed([])
    with pytest.raises(ValueError, match="not finite"):
        bootstrap_crossed([[0.0, math.nan], [0.0, 1.0]])
