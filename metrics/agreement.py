"""How far several annotators agree."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

import numpy as np

from metrics.intervals import Estimate


def ordinal_alpha(units: Iterable[Sequence[float]]) -> float | None:
    """Krippendorff's alpha for ordinal values: 1 is full agreement, 0 what chance gives.

    Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", section D with the ordinal
    metric. (The package of that name is under the GPL, and this repository is not.)

    Args:
        units: For each thing that was judged, the values that it was given, in any order; things
            with fewer than two are left out.

    Returns:
        Alpha; None where nothing was judged twice, or all values are the same.
    """
    judged = [values for values in units if len(values) > 1]
    kinds = sorted({value for values in judged for value in values})
    place = {value: number for number, value in enumerate(kinds)}
    together = np.zeros((len(kinds), len(kinds)))  # o_ck: pairs of values c, k within units
    for values in judged:
        counts = Counter(place[value] for value in values)
        for c, k in ((c, k) for c in counts for k in counts):
            together[c, k] += counts[c] * (counts[k] - (c == k)) / (len(values) - 1)
    often = together.sum(axis=0)  # n_c
    # delta_ck = sum of n_g for g from c to k, less half of both ends.
    middle = np.cumsum(often) - often / 2
    distance = (middle[:, None] - middle[None, :]) ** 2
    expected = (np.outer(often, often) * distance).sum()
    if not expected:
        return None
    return float(1 - (often.sum() - 1) * (together * distance).sum() / expected)


def share_same_order(rankings: Iterable[Sequence[Mapping[str, float]]]) -> Estimate | None:
    """How often two annotators put the same two completions in the same order.

    Where one of them calls the two equal, the comparison is left out.

    Args:
        rankings: For each dialogue, what each annotator ranked by its rank.

    Returns:
        The share, with the number of comparisons; None where there are none.
    """
    same = [
        (one[a] < one[b]) == (two[a] < two[b])
        for annotators in rankings
        for one, two in combinations(annotators, 2)
        for a, b in combinations(sorted(one.keys() & two.keys()), 2)
        if one[a] != one[b] and two[a] != two[b]
    ]
    return Estimate(sum(same) / len(same), len(same)) if same else None
