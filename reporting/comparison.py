"""The numbers of a comparison: values, differences and costs of groups of runs.

A group of one run has the values and intervals of its summary.json: what the run said of itself.
Those of several runs are computed from their predictions.jsonl, and so are all differences: over
the examples that both sides were tested on.
"""

from collections.abc import Sequence
from functools import cache, cached_property

import numpy as np

from metrics.intervals import Estimate, bootstrap_crossed, bootstrap_mean
from metrics.over_runs import Matrix, difference_over_runs, share_first
from metrics.words import KEYS
from reporting.groups import group_runs
from reporting.runs import Key, Run, late

HEADLINE = "rouge1"
"""The metric that runs are ranked by."""

COMPARED = (*KEYS, "toxicity", "reward")
"""Metrics of examples that runs are compared by."""

LOWER_IS_BETTER = ("toxicity",)


class Comparison:
    """Runs, put together to groups, and what is computed of them.

    Args:
        runs: At least one.
        problems: What could not be read, a sentence each.
        baseline: Name or path of the run to compare with; chosen where None.
        price_per_hour: Dollars an hour of the machine costs; None where it is unknown.

    Raises:
        ValueError: No run is called as the baseline is.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        problems: Sequence[str] = (),
        baseline: str | None = None,
        price_per_hour: float | None = None,
    ) -> None:
        self.runs = list(runs)
        self.problems = list(problems)
        self.price_per_hour = price_per_hour
        self.groups = group_runs(runs)
        self.baseline = self._find(baseline) if baseline else self._choose_baseline()
        self.estimate = cache(self._estimate)
        self.difference = cache(self._difference)

    def _find(self, name: str) -> int:
        for place, group in enumerate(self.groups):
            if name == group.label or any(name in (run.name, str(run.path)) for run in group.runs):
                return place
        names = ", ".join(run.name for run in self.runs)
        raise ValueError(f"--baseline {name} is none of the runs that can be shown: {names}.")

    def _choose_baseline(self) -> int:
        """The best of what no weight was trained for, people left out; else the first."""
        untrained = {
            place: self._estimate(place, HEADLINE)
            for place, group in enumerate(self.groups)
            if group.first.trainable == 0 and group.first.method != "human"
        }
        scored = {place: found.value for place, found in untrained.items() if found}
        return max(scored, key=lambda place: scored[place]) if scored else 0

    @cached_property
    def ranked(self) -> list[int]:
        """Places of the groups that a model made and that have the headline metric, best first."""
        found = {
            place: value.value
            for place, group in enumerate(self.groups)
            if group.first.has_model and (value := self._estimate(place, HEADLINE))
        }
        return sorted(found, key=lambda place: -found[place])

    def _estimate(self, place: int, metric: str) -> Estimate | None:
        """Give a group's mean of a test metric, with n and interval where there are any."""
        runs = self.groups[place].runs
        own = [run.metrics.get(f"test/{metric}") for run in runs]
        known = [one for one in own if one is not None]
        if len(known) < len(runs):
            return None
        if len(runs) == 1:
            return known[0]
        keys = shared_keys(runs, metric)
        if keys:
            return bootstrap_crossed(matrix(runs, metric, keys).tolist())
        return Estimate(float(np.mean([one.value for one in known])))

    def run_values(self, place: int, metric: str) -> list[float]:
        """Give the means of a group's runs one by one."""
        found = [run.metrics.get(f"test/{metric}") for run in self.groups[place].runs]
        return [one.value for one in found if one is not None]

    def _difference(self, before: int, after: int, metric: str) -> Estimate | None:
        """Give the mean of `after` - `before` over the examples that both have; None without."""
        if before > after:  # the same the other way round
            gap = self.difference(after, before, metric)
            return None if gap is None else _negated(gap)
        one, two = self.groups[before], self.groups[after]
        keys = shared_keys([*one.runs, *two.runs], metric)
        if not keys or before == after:
            return None
        paired = len(one.runs) > 1 and one.by_seed.keys() == two.by_seed.keys()
        first, second = (
            matrix(list(side.by_seed.values()) if paired else side.runs, metric, keys)
            for side in (one, two)
        )
        return difference_over_runs(first, second, paired)

    def change(self, place: int, metric: str) -> Estimate | None:
        """Give what PPO or DPO changed of a metric: the paired difference to its start's texts."""
        runs = self.groups[place].runs
        if len(runs) == 1:
            return runs[0].metrics.get(f"test/{metric}_change")
        before = f"{metric}_before"
        known = set(shared_keys(runs, before))
        keys = [key for key in shared_keys(runs, metric) if key in known]
        if not keys:
            return None
        return difference_over_runs(matrix(runs, before, keys), matrix(runs, metric, keys), True)

    @cached_property
    def share_first(self) -> tuple[float, int] | None:
        """In which share of the resamples the best group is first, and of how many examples.

        None where there is no other group, or not two examples that all were tested on.
        """
        groups = [self.groups[place].runs for place in self.ranked]
        keys = shared_keys([run for runs in groups for run in runs], HEADLINE)
        if len(groups) < 2 or len(keys) < 2:
            return None
        return share_first([matrix(runs, HEADLINE, keys) for runs in groups], 0), len(keys)

    def kl(self, place: int) -> Estimate | None:
        """Give the KL to the reference at the end of PPO, nats per sequence.

        Of one run the mean over the last quarter of the logged batches, with the interval over
        these; of several the mean of theirs.
        """
        found = [run.curves.get("objective/kl") for run in self.groups[place].runs]
        curves = [one.values for one in found if one is not None]
        if len(curves) < len(found):
            return None
        ends = [bootstrap_mean(late(values)) for values in curves]
        return ends[0] if len(ends) == 1 else Estimate(float(np.mean([one.value for one in ends])))

    def cost(self, place: int, name: str) -> list[float]:
        """Give "seconds", "peak_memory_bytes" or "dollars" of each run that knows it."""
        if name == "dollars":
            price = self.price_per_hour
            seconds = self.cost(place, "seconds")
            return [] if price is None else [one / 3600 * price for one in seconds]
        found = [run.summary.get(name) for run in self.groups[place].runs]
        return [float(one) for one in found if isinstance(one, int | float)]


def _negated(estimate: Estimate) -> Estimate:
    value, n, low, high = estimate
    return Estimate(-value, n, None if high is None else -high, None if low is None else -low)


def shared_keys(runs: Sequence[Run], metric: str) -> list[Key]:
    """List the examples that all runs have a value for, in the order of the first run."""
    first, *others = [run.values(metric) for run in runs]
    return [key for key in first if all(key in other for other in others)]


def matrix(runs: Sequence[Run], metric: str, keys: Sequence[Key]) -> Matrix:
    """Give the runs' values of the examples, [K, n]."""
    columns = [run.values(metric) for run in runs]
    return np.array([[column[key] for key in keys] for column in columns], dtype=np.float64)
