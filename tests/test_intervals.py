import math

import numpy as np
import pytest

from metrics import intervals
from metrics.intervals import Estimate, bootstrap_mean, paired_change


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
