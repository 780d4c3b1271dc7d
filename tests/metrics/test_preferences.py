"""Accuracy by distance, calibration and histograms of rewards, by hand."""

import math
from pathlib import Path
from typing import Any

import pytest

from callbacks.preferences import PreferenceAccuracy, measure
from common.run_folder import RunFolder
from metrics.preferences import (
    accuracy_by_distance,
    calibrate_pairs,
    count_rewards,
    group_rewards,
    rate_order,
)
from reporting.run_plots import draw_run
from tests.batches import make_trainer, settle
from tests.test_reward_model import make_data, make_module

ROWS: list[dict[str, Any]] = [
    # Preferred first: 0 > 1 > 2 is what annotators say, and 0 > 2 > 1 the rewards.
    {"pairs": [(0, 1, 1.0), (1, 2, 1.0), (0, 2, 2.0)], "rewards": [3.0, 0.0, 1.0]},
    {"pairs": [(1, 0, 0.4), (1, 2, 1.5)], "rewards": [1.0, 1.0, 2.0]},
]


def test_a_tie_of_rewards_is_half_right() -> None:
    assert rate_order(ROWS[0]) == [1, 0, 1]
    assert rate_order(ROWS[1]) == [0.5, 0]


def test_accuracy_by_distance_is_a_mean_over_rankings() -> None:
    found = accuracy_by_distance(ROWS)
    assert {distance: (each.value, each.n) for distance, each in found.items()} == {
        1: ((1 / 2 + 1 / 2) / 2, 2),  # (1 + 0) / 2 of the first, 0.5 of the second
        2: ((1 + 0) / 2, 2),
    }


def test_pairs_are_as_sure_as_the_rewards_are_apart() -> None:
    found = calibrate_pairs([{"pairs": [(0, 1, 1)], "rewards": [0.0, math.log(3)]}])
    assert found.bins[0].confidence == pytest.approx(0.75)
    assert found.ece == pytest.approx(0.75)  # and wrong


def test_rewards_by_what_annotators_say() -> None:
    groups = group_rewards(ROWS)
    assert groups == {"best": [3.0, 1.0], "between": [0.0], "worst": [1.0, 1.0, 2.0]}
    counted = count_rewards(groups)
    assert counted["groups"]["best"] | {"counts": 0} == {
        "counts": 0, "mean": 2.0, "std": 1.0, "n": 2
    }  # fmt: skip
    assert sum(counted["groups"]["worst"]["counts"]) == 3
    assert counted["edges"][0] == 0.0 and counted["edges"][-1] == 3.0


def test_a_test_leaves_numbers_and_pictures(roberta: str, tmp_path: Path) -> None:
    module, data = settle(make_module(roberta)), make_data(roberta, tmp_path)
    trainer = make_trainer(tmp_path, callbacks=[PreferenceAccuracy()])
    trainer.test(module, data, verbose=False)
    folder = RunFolder(tmp_path)
    rows = folder.read_predictions()
    assert [row["id"] for row in rows] == ["r0", "r1", "r2", "r3"]
    summary = folder.read_summary()
    expected = measure(rows)
    assert set(expected) == {"accuracy", "accuracy_distance_1", "ece"}
    for name, estimate in expected.items():
        assert summary["metrics"][f"test/{name}"] == pytest.approx(estimate._asdict())
        assert float(trainer.callback_metrics[f"test/{name}"]) == pytest.approx(estimate.value)
    assert sum(each["n"] for each in summary["preferences"]["calibration"]) == 4
    assert summary["preferences"]["rewards"]["groups"]["best"]["n"] == 4
    draw_run(folder)
    for name in ("accuracy_by_distance", "calibration", "rewards"):
        assert (folder.plots / f"{name}.png").stat().st_size > 5000
