"""Accuracy of a reward model on ranked completions."""

from collections.abc import Sequence
from typing import Any

import lightning as L

from callbacks.text_metric import Row, RowCollector
from common.run_folder import RunFolder
from metrics.intervals import Estimate, bootstrap_mean
from metrics.preferences import (
    accuracy_by_distance,
    calibrate_pairs,
    count_rewards,
    group_rewards,
    rate_order,
)


class PreferenceAccuracy(RowCollector):
    """Log ``val/accuracy`` and ``test/accuracy``; write the test's rankings with their rewards.

    The accuracy of a ranking is the share of its pairs that the rewards order like the annotators.
    Mean and interval are over rankings, which are the independent samples.

    A test also logs ``test/accuracy_distance_<d>``, the same for pairs that are d ranks apart, and
    ``test/ece``, the expected calibration error of sigmoid(r_j - r_k) over all pairs. summary.json
    has the bins of the reliability diagram and of the rewards' histogram under "preferences".
    """

    def make_rows(self, batch: Any, outputs: Any) -> list[Row]:
        """Pair the batch's rankings with their rewards."""
        return make_rows(batch, outputs)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the mean accuracy."""
        accuracy = bootstrap_mean([row["accuracy"] for row in self.take_rows()])
        pl_module.log("val/accuracy", accuracy.value, sync_dist=True, prog_bar=True)

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the metrics; record them and the rankings in the run folder."""
        rows = self.take_rows()
        found = measure(rows)
        for name, estimate in found.items():
            pl_module.log(name, estimate.value, sync_dist=True)
        if trainer.is_global_zero:
            folder = RunFolder(trainer.default_root_dir)
            folder.record_metrics(found)
            folder.update_summary(
                preferences={
                    "calibration": [each._asdict() for each in calibrate_pairs(rows).bins],
                    "rewards": count_rewards(group_rewards(rows)),
                }
            )
            folder.merge_predictions([{k: row[k] for k in row if k != "index"} for row in rows])


def measure(rows: Sequence[Row]) -> dict[str, Estimate]:
    """Return the test's metrics of rows from :func:`make_rows`."""
    calibration = calibrate_pairs(rows)
    return {
        "test/accuracy": bootstrap_mean([row["accuracy"] for row in rows]),
        **{
            f"test/accuracy_distance_{distance}": estimate
            for distance, estimate in accuracy_by_distance(rows).items()
        },
        "test/ece": Estimate(calibration.ece, calibration.n),
    }


def make_rows(batch: Any, outputs: Any) -> list[Row]:
    """Return one row per ranking of a batch, with its rewards and accuracy."""
    rows = []
    for ranking, rewards in zip(batch["rankings"], outputs["rewards"], strict=True):
        row = ranking._asdict() | {"rewards": rewards}
        right = rate_order(row)
        rows.append(row | {"accuracy": sum(right) / len(right)})
    return rows
