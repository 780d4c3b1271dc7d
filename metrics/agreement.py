"""Agreement of several annotators."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

import numpy as np

from metrics.intervals import Estimate


def ordinal_alpha(units: Iterable[Sequence[float]]) -> float | None:
    """Compute Krippendorff's alpha for ordinal values (1: agreement, 0: chance).

    Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", section D with the ordinal
    metric. (The package of that name is GPL-licensed and cannot be used here.)

    Args:
        units: For each judged item the values that it was given, in any order; items with fewer
            than two values are ignored.

    Returns:
        Alpha; None if nothing was judged twice, or all values are equal.
    """
    judged = [values for values in units if len(values) > 1]
    kinds = sorted({value for values in judged for value in values})
    position = {value: number for number, value in enumerate(kinds)}
    coincidences = np.zeros((len(kinds), len(kinds)))  # o_ck: pairs of values c, k within units
    for values in judged:
        counts = Counter(position[value] for value in values)
        for c, k in ((c, k) for c in counts for k in counts):
            coincidences[c, k] += counts[c] * (counts[k] - (c == k)) / (len(values) - 1)
    totals = coincidences.sum(axis=0)  # n_c
    # delta_ck: the sum of n_g for g from c to k, minus half of both ends.
    middle = np.cumsum(totals) - totals / 2
    distance = (middle[:, None] - middle[None, :]) ** 2
    expected = (np.outer(totals, totals) * distance).sum()
    if not expected:
        return None
    return float(1 - (totals.sum() - 1) * (coincidences * distance).sum() / expected)


def share_same_order(rankings: Iterable[Sequence[Mapping[str, float]]]) -> Estimate | None:
    """Compute how often two annotators put the same two completions in the same order.

    Comparisons in which one annotator ties the two are ignored.

    Args:
        rankings: For each dialogue, each annotator's ranks by completion.

    Returns:
        The share, with the number of comparisons; None if there are none.
    """
    same = [
        (one[a] < one[b]) == (two[a] < two[b])
        for annotators in rankings
        for one, two in combinations(annotators, 2)
        for a, b in combinations(sorted(one.keys() & two.keys()), 2)
        if one[a] != one[b] and two[a] != two[b]
    ]
    return Estimate(sum(same) / len(same), len(same)) if same else None
