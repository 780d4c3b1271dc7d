"""How well rewards order what annotators have ordered, and how sure they may be of it."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from metrics.calibration import Calibration, calibrate
from metrics.intervals import Estimate, bootstrap_mean

HISTOGRAM_BINS = 25

Row = Mapping[str, Any]
"""A tested ranking: "pairs", lists of (place of the preferred, place of the other, distance), and
"rewards", one for each completion."""


def leads(row: Row) -> list[float]:
    """Give for each pair the reward of the preferred completion less that of the other."""
    rewards = row["rewards"]
    return [rewards[preferred] - rewards[other] for preferred, other, _ in row["pairs"]]


def rate_order(row: Row) -> list[float]:
    """Give for each pair 1 where its rewards are in order, else 0; and 0.5, a coin's, for a tie."""
    return [0.5 if lead == 0 else float(lead > 0) for lead in leads(row)]


def accuracy_by_distance(rows: Sequence[Row]) -> dict[int, Estimate]:
    """Give the accuracy by how many ranks the two are apart, to the nearest whole number from 1 on.

    As for the accuracy of all pairs, the mean is over rankings, each by the share of its pairs.
    """
    shares: dict[int, list[float]] = defaultdict(list)
    for row in rows:
        right: dict[int, list[float]] = defaultdict(list)
        for (_, _, distance), each in zip(row["pairs"], rate_order(row), strict=True):
            right[max(1, int(distance + 0.5))].append(each)
        for distance, found in right.items():
            shares[distance].append(sum(found) / len(found))
    return {distance: bootstrap_mean(shares[distance]) for distance in sorted(shares)}


def calibrate_pairs(rows: Sequence[Row]) -> Calibration:
    """Compare how sure sigmoid(r_j - r_k) is of an order with how often that is the annotators'."""
    lead = np.array([lead for row in rows for lead in leads(row)])
    right = np.array([each for row in rows for each in rate_order(row)])
    return calibrate(1 / (1 + np.exp(-np.abs(lead))), right)


def group_rewards(rows: Sequence[Row]) -> dict[str, list[float]]:
    """Sort rewards by what annotators say: never second in a pair, never first, or between."""
    groups: dict[str, list[float]] = {"best": [], "between": [], "worst": []}
    for row in rows:
        first = {pair[0] for pair in row["pairs"]}
        second = {pair[1] for pair in row["pairs"]}
        for place in sorted(first | second):
            name = "best" if place not in second else "worst" if place not in first else "between"
            groups[name].append(row["rewards"][place])
    return {name: values for name, values in groups.items() if values}


def count_rewards(groups: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Give the histogram of grouped rewards in JSON's types, with each group's mean, std and n."""
    edges = np.histogram_bin_edges(np.concatenate(list(groups.values())), HISTOGRAM_BINS)
    return {
        "edges": edges.tolist(),
        "groups": {
            name: {
                "counts": np.histogram(values, edges)[0].tolist(),
                "mean": float(np.mean(values)),
                "std": float(np.std(values)),
                "n": len(values),
            }
            for name, values in groups.items()
        },
    }
