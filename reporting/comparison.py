"""Compute what a comparison shows: means, paired differences and costs of groups of runs.

A group of one run has the values and intervals of its summary.json. Those of several runs, and all
differences, are computed from predictions.jsonl, over the examples that both sides were tested on.
"""

from collections.abc import Sequence
from functools import cache, cached_property

import numpy as np

from metrics.intervals import (
    Array,
    Estimate,
    bootstrap_crossed,
    bootstrap_mean,
    difference_over_runs,
)
from reporting.numbers import ROUGE_LABELS
from reporting.runs import Key, Run
from reporting.seeds import group_runs

HEADLINE = "rouge1"
"""The metric that runs are ranked by."""

COMPARED = (*ROUGE_LABELS, "toxicity", "reward")
"""Per-example metrics that runs are compared by."""

LOWER_IS_BETTER = ("toxicity",)


class Comparison:
    """Groups of runs and their statistics.

    Args:
        runs: At least one.
        problems: Sentences about what could not be read.
        baseline: Name or path of the run to compare with; chosen if None.

    Raises:
        ValueError: No run has the name of the baseline.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        problems: Sequence[str] = (),
        baseline: str | None = None,
    ) -> None:
        self.runs = list(runs)
        self.problems = list(problems)
        self.groups = group_runs(runs)
        self.labels = [group.label for group in self.groups]
        self.estimate = cache(self._estimate)
        self.difference = cache(self._difference)
        self.baseline = self._find_baseline(baseline)

    def _find_baseline(self, name: str | None) -> int:
        """Find a run, by default the best method without training, or the first run."""
        for index, group in enumerate(self.groups):
            if name in (group.label, *(n for run in group.runs for n in (run.name, str(run.path)))):
                return index
        if name is not None:
            names = ", ".join(run.name for run in self.runs)
            raise ValueError(f"--baseline {name} is not among the runs: {names}.")
        untrained = {
            index: found.value
            for index, group in enumerate(self.groups)
            if group.first.trainable == 0
            and group.first.method != "human"
            and (found := self.estimate(index, HEADLINE))
        }
        return max(untrained, key=lambda index: untrained[index]) if untrained else 0

    @cached_property
    def ranked(self) -> list[int]:
        """Indices of the groups of models that have the headline metric, best first."""
        found = {
            index: value.value
            for index, group in enumerate(self.groups)
            if group.first.has_model and (value := self.estimate(index, HEADLINE))
        }
        return sorted(found, key=lambda index: -found[index])

    @cached_property
    def leaders(self) -> list[int]:
        """The best of the ranked groups, and those that are not clearly behind it."""
        return [i for i in self.ranked if i == self.ranked[0] or not self._is_behind(i)]

    def _is_behind(self, index: int) -> bool:
        """Return whether the best beats a group, by paired difference or separate intervals."""
        best = self.ranked[0]
        gap = self.difference(index, best, HEADLINE)
        if gap is not None:
            return gap.low is not None and gap.low > 0
        one, two = (self.estimate(i, HEADLINE) for i in (index, best))
        return None not in (one, two) and (two.low or 0) > (one.high or 1)  # type: ignore[union-attr]

    def _estimate(self, index: int, metric: str) -> Estimate | None:
        """Return a group's mean of a test metric; None if a run lacks it."""
        runs = self.groups[index].runs
        own = [run.metrics.get(f"test/{metric}") for run in runs]
        known = [one for one in own if one is not None]
        if len(known) < len(runs):
            return None
        if len(runs) == 1:
            return known[0]
        if keys := shared_keys(runs, metric):
            return bootstrap_crossed(matrix(runs, metric, keys).tolist())
        return Estimate(float(np.mean([one.value for one in known])))

    def run_values(self, index: int, metric: str) -> list[float]:
        """Return the means of a group's runs, one by one."""
        found = [run.metrics.get(f"test/{metric}") for run in self.groups[index].runs]
        return [one.value for one in found if one is not None]

    def _difference(self, before: int, after: int, metric: str) -> Estimate | None:
        """Return the mean of `after` - `before` over shared examples; None if there are none."""
        if before > after:  # computed once, for one direction
            gap = self.difference(after, before, metric)
            return gap and Estimate(
                -gap.value, gap.n,
                None if gap.high is None else -gap.high, None if gap.low is None else -gap.low,
            )  # fmt: skip
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

    def change(self, index: int, metric: str) -> Estimate | None:
        """Return the paired change of a metric from before PPO or DPO to after it."""
        runs = self.groups[index].runs
        if len(runs) == 1:
            return runs[0].metrics.get(f"test/{metric}_change")
        known = set(shared_keys(runs, f"{metric}_before"))
        keys = [key for key in shared_keys(runs, metric) if key in known]
        if not keys:
            return None
        before, after = (matrix(runs, name, keys) for name in (f"{metric}_before", metric))
        return difference_over_runs(before, after, True)

    def kl(self, index: int) -> Estimate | None:
        """Return the KL to the reference at the end of PPO, in nats per sequence.

        For one run the mean over the last quarter of the logged batches, with an interval over
        these batches; for several runs the mean of theirs.
        """
        found = [run.curves.get("objective/kl") for run in self.groups[index].runs]
        curves = [one.values for one in found if one is not None]
        if len(curves) < len(found):
            return None
        ends = [bootstrap_mean(values[-max(1, len(values) // 4) :]) for values in curves]
        return ends[0] if len(ends) == 1 else Estimate(float(np.mean([one.value for one in ends])))

    def cost(self, index: int, name: str) -> list[float]:
        """Return "seconds" or "peak_memory_bytes" of the runs that know it."""
        found = [run.summary.get(name) for run in self.groups[index].runs]
        return [float(one) for one in found if isinstance(one, int | float)]


def shared_keys(runs: Sequence[Run], metric: str) -> list[Key]:
    """List the examples for which all runs have a value, in the order of the first run."""
    first, *others = [run.values(metric) for run in runs]
    return [key for key in first if all(key in other for other in others)]


def matrix(runs: Sequence[Run], metric: str, keys: Sequence[Key]) -> Array:
    """Return the runs' values of the examples, [K, n]."""
    columns = [run.values(metric) for run in runs]
    return np.array([[column[key] for key in keys] for column in columns], dtype=np.float64)
