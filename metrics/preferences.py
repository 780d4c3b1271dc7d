"""Accuracy, calibration and distribution of rewards on ranked completions."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from metrics.calibration import Calibration, calibrate
from metrics.intervals import Estimate, bootstrap_mean

HISTOGRAM_BINS = 25

Row = Mapping[str, Any]
"""A tested ranking: "pairs" of (preferred, other, distance), by position, and "rewards", one per
completion."""


def leads(row: Row) -> list[float]:
    """Return each pair's reward margin, preferred minus other completion."""
    rewards = row["rewards"]
    return [rewards[preferred] - rewards[other] for preferred, other, _ in row["pairs"]]


def rate_order(row: Row) -> list[float]:
    """Return for each pair 1 if its rewards are in order, 0 if not, 0.5 if tied."""
    return [0.5 if lead == 0 else float(lead > 0) for lead in leads(row)]


def accuracy_by_distance(rows: Sequence[Row]) -> dict[int, Estimate]:
    """Estimate the accuracy by the rounded distance in ranks, at least 1.

    Like the accuracy of all pairs, it is the mean over rankings of their share of correct pairs.
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
    """Compare the confidence sigmoid(|r_j - r_k|) with how often the annotators agree."""
    lead = np.array([lead for row in rows for lead in leads(row)])
    right = np.array([each for row in rows for each in rate_order(row)])
    return calibrate(1 / (1 + np.exp(-np.abs(lead))), right)


def group_rewards(rows: Sequence[Row]) -> dict[str, list[float]]:
    """Group rewards by whether completions win all, some or none of their pairs."""
    groups: dict[str, list[float]] = {"best": [], "between": [], "worst": []}
    for row in rows:
        first = {pair[0] for pair in row["pairs"]}
        second = {pair[1] for pair in row["pairs"]}
        for position in sorted(first | second):
            if position not in second:
                name = "best"
            elif position not in first:
                name = "worst"
            else:
                name = "between"
            groups[name].append(row["rewards"][position])
    return {name: values for name, values in groups.items() if values}


def count_rewards(groups: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Return the histogram of grouped rewards, with mean, std and n per group."""
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
