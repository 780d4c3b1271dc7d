"""Accuracy of a reward model on ranked completions."""

from collections.abc import Sequence
from typing import Any

import lightning as L

from callbacks.text_metric import Row, RowCollector, log_estimates, write_predictions
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
        """Return one row per ranking of a batch, with its rewards and accuracy."""
        rows = []
        for ranking, rewards in zip(batch["rankings"], outputs["rewards"], strict=True):
            row = ranking._asdict() | {"rewards": rewards}
            right = rate_order(row)
            rows.append(row | {"accuracy": sum(right) / len(right)})
        return rows

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the mean accuracy."""
        found = {"accuracy": bootstrap_mean([row["accuracy"] for row in self.take_rows()])}
        log_estimates(trainer, pl_module, "val", found, record=False)

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the metrics; record them and the rankings in the run folder."""
        rows = self.take_rows()
        log_estimates(trainer, pl_module, "test", measure(rows))
        if trainer.is_global_zero:
            folder = RunFolder(trainer.default_root_dir)
            folder.update_summary(
                preferences={
                    "calibration": [each._asdict() for each in calibrate_pairs(rows).bins],
                    "rewards": count_rewards(group_rewards(rows)),
                }
            )
            write_predictions(trainer, rows)


def measure(rows: Sequence[Row]) -> dict[str, Estimate]:
    """Return the test's metrics of gathered rows."""
    calibration = calibrate_pairs(rows)
    return {
        "accuracy": bootstrap_mean([row["accuracy"] for row in rows]),
        **{
            f"accuracy_distance_{distance}": estimate
            for distance, estimate in accuracy_by_distance(rows).items()
        },
        "ece": Estimate(calibration.ece, calibration.n),
    }
