"""Accuracy, F1 and calibration of a classifier."""

from collections.abc import Sequence
from typing import Any

import lightning as L
import numpy as np
import torch
from torchmetrics.functional.classification import multiclass_f1_score

from callbacks.text_metric import Row, RowCollector, log_estimates, to_rows, write_predictions
from common.run_folder import RunFolder
from metrics.calibration import Calibration, calibrate
from metrics.intervals import Estimate, bootstrap_mean, bootstrap_statistics


class ClassificationMetrics(RowCollector):
    """Log accuracy, F1 and calibration; write the test's texts with their probabilities.

    ``accuracy`` is the share of texts with the correct label; ``f1_<label>`` the F1 of a label, and
    ``f1`` the mean over labels, in which rare labels count as much as frequent ones; ``ece`` the
    expected calibration error of the predicted label's probability. summary.json has the bins of
    the reliability diagram under "classification".
    """

    def make_rows(self, batch: Any, outputs: Any) -> list[Row]:
        """Return one row per text of a batch, with its probability for each label index."""
        columns = {
            "index": batch["index"].tolist(),
            "id": batch["ids"],
            "text": batch["texts"],
            "label": batch["labels"].tolist(),
            "probabilities": outputs["probabilities"],
        }
        return to_rows(columns)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Log the metrics."""
        found = measure(self.take_rows(), pl_module.labels)
        log_estimates(trainer, pl_module, "val", found, record=False)

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Log the metrics; record them and the texts in the run folder."""
        rows = self.take_rows()
        log_estimates(trainer, pl_module, "test", measure(rows, pl_module.labels))
        if trainer.is_global_zero:
            bins = [each._asdict() for each in calibrate_labels(rows).bins]
            folder = RunFolder(trainer.default_root_dir)
            folder.update_summary(classification={"calibration": bins})
            write_predictions(trainer, [describe(row, pl_module.labels) for row in rows])


def predict(row: Row) -> int:
    """Return the index of the most probable label."""
    return max(range(len(row["probabilities"])), key=row["probabilities"].__getitem__)


def measure(rows: Sequence[Row], labels: Sequence[str]) -> dict[str, Estimate]:
    """Return the metrics of gathered rows, with intervals over texts."""
    true, predicted = (torch.tensor(each) for each in zip(*map(find_labels, rows), strict=True))
    right = (true == predicted).double()
    sure = np.array([max(row["probabilities"]) for row in rows])

    def f1_and_ece(chosen: Any) -> list[float]:
        # A label that neither occurs nor is predicted counts as 1, not as 0.
        f1 = multiclass_f1_score(
            predicted[chosen], true[chosen], len(labels), average="none", zero_division=1.0
        )
        return [float(f1.mean()), *f1.tolist(), calibrate(sure[chosen], right[chosen]).ece]

    names = ("f1", *(f"f1_{label}" for label in labels), "ece")
    estimates = bootstrap_statistics(f1_and_ece, len(rows))
    return {
        "accuracy": bootstrap_mean(right.tolist()), **dict(zip(names, estimates, strict=True))
    }  # fmt: skip


def find_labels(row: Row) -> tuple[int, int]:
    """Return the indices of a row's label and of the predicted label."""
    return row["label"], predict(row)


def calibrate_labels(rows: Sequence[Row]) -> Calibration:
    """Compare the probability of the predicted label with how often it is correct."""
    return calibrate(
        [max(row["probabilities"]) for row in rows], [predict(row) == row["label"] for row in rows]
    )


def describe(row: Row, labels: Sequence[str]) -> dict[str, Any]:
    """Return a row for predictions.jsonl, with labels by name."""
    return row | {
        "label": labels[row["label"]],
        "predicted_label": labels[predict(row)],
        "probabilities": dict(zip(labels, row["probabilities"], strict=True)),
    }
