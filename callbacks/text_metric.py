"""Collect generated texts, score them, and record the scores."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import lightning as L
import torch.distributed
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn

from common.run_folder import RunFolder
from metrics.intervals import Estimate, estimate_columns
from metrics.text_statistics import TextMetric

Row = dict[str, Any]
"""A generated text and its origin: "index" (row of the split), "id", "dialogue", "references" (list
of texts), "prediction", and "prediction_before" if the module has a policy before training too."""

Columns = Mapping[str, Sequence[float]]
"""Values per example by metric name, each in the order of the rows."""

SHOWN = ("val/rouge1", "val/accuracy", "val/f1")
"""Metrics in the progress bar."""


class RowCollector(Callback):
    """Collect one row per example of the running evaluation, on this rank."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def make_rows(self, batch: Any, outputs: Any) -> list[Row]:
        """Pair a batch with the texts that were generated for it.

        Args:
            batch: A batch of the data module: "index", "ids", "dialogues", "references".
            outputs: What the step returned: "predictions" and perhaps "predictions_before", or in
                `predict` a list of texts.
        """
        if isinstance(outputs, list):
            outputs = {"predictions": outputs}
        columns = {
            "index": batch["index"].tolist(),
            "id": batch["ids"],
            "dialogue": batch["dialogues"],
            "references": batch["references"],
            "prediction": outputs["predictions"],
        }
        if "predictions_before" in outputs:
            columns["prediction_before"] = outputs["predictions_before"]
        return to_rows(columns)

    def start_rows(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start with no rows."""
        self.rows = []

    def collect_rows(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Collect a batch's rows, unless its step returned None and has nothing to score."""
        if outputs is not None:
            self.rows += self.make_rows(batch, outputs)

    on_validation_epoch_start = on_test_epoch_start = on_predict_epoch_start = start_rows
    on_validation_batch_end = on_test_batch_end = on_predict_batch_end = collect_rows

    def take_rows(self) -> list[Row]:
        """Return the rows of all ranks in the order of the split, and forget them."""
        rows, self.rows = gather_rows(self.rows), []
        return rows


class PredictionWriter(RowCollector):
    """Write the texts of `predict` to predictions.jsonl."""

    def on_predict_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the texts."""
        rows = self.take_rows()
        if trainer.is_global_zero:
            write_predictions(trainer, rows)


class TextMetricCallback(RowCollector):
    """Score generated texts with one value per example; subclasses implement :meth:`score`.

    Validation logs the means as `val/<name>`, a test as `test/<name>`; summary.json records them
    with n and 95 % interval, and predictions.jsonl a test's values per example. If the module also
    returns texts from before training, columns come in pairs (`<name>`, `<name>_before`), and
    `test/<name>_change` is the mean paired difference.
    """

    def score(
        self, pl_module: L.LightningModule, texts: Sequence[str], rows: Sequence[Row]
    ) -> Columns:
        """Score one text for each of this rank's rows.

        Args:
            pl_module: The module that generated the texts.
            texts: At least one text.
            rows: Their rows. Fields added to a row are written to predictions.jsonl too.

        Returns:
            One value per text for each metric; the same names on every rank.
        """
        raise NotImplementedError

    def estimates(self, columns: Columns) -> dict[str, Estimate]:
        """Estimate means with intervals from columns, and changes from pairs of columns."""
        return estimate_columns(columns)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the means; a fit records them."""
        if not trainer.sanity_checking:
            _, columns = self.score_rows(pl_module)
            record = trainer.state.fn == TrainerFn.FITTING
            log_estimates(trainer, pl_module, "val", self.estimates(columns), record)

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log and record the means; write the values per example."""
        rows, columns = self.score_rows(pl_module)
        log_estimates(trainer, pl_module, "test", self.estimates(columns))
        if trainer.is_global_zero and rows:
            write_predictions(trainer, rows, columns)

    def score_rows(self, pl_module: L.LightningModule) -> tuple[list[Row], Columns]:
        """Score this rank's rows, and gather those of all ranks in the order of the split."""
        columns: dict[str, Sequence[float]] = {}
        # The prediction comes last, so that what it adds to the rows is kept.
        for text, suffix in (("prediction_before", "_before"), ("prediction", "")):
            if self.rows and text in self.rows[0]:
                found = self.score(pl_module, [row[text] for row in self.rows], self.rows)
                columns |= {name + suffix: values for name, values in found.items()}
        self.rows = [
            row | {"scores": {name: values[i] for name, values in columns.items()}}
            for i, row in enumerate(self.rows)
        ]
        rows = self.take_rows()
        scores = [row.pop("scores") for row in rows]
        names = scores[0] if scores else {}
        return rows, {name: [score[name] for score in scores] for name in names}


def measure(
    metrics: Mapping[str, TextMetric], texts: Sequence[str], rows: Sequence[Row]
) -> dict[str, Sequence[float]]:
    """Apply functions of texts, dialogues and references to the texts of some rows."""
    dialogues = [row["dialogue"] for row in rows]
    references = [row["references"] for row in rows]
    return {name: metric(texts, dialogues, references) for name, metric in metrics.items()}


def log_estimates(
    trainer: L.Trainer,
    pl_module: L.LightningModule,
    stage: str,
    estimates: Mapping[str, Estimate],
    record: bool = True,
) -> None:
    """Log estimates as `<stage>/<name>`, and record them in summary.json with n and interval."""
    found = {f"{stage}/{name}": value for name, value in estimates.items()}
    for name, estimate in found.items():
        # Every rank has all rows and thus the same value: sync_dist avoids a warning.
        pl_module.log(name, estimate.value, sync_dist=True, batch_size=1, prog_bar=name in SHOWN)
    if record and found and trainer.is_global_zero:
        RunFolder(trainer.default_root_dir).record_metrics(found)


def write_predictions(
    trainer: L.Trainer, rows: Sequence[Row], columns: Columns = MappingProxyType({})
) -> None:
    """Write rows and their scores to predictions.jsonl in the run folder."""
    RunFolder(trainer.default_root_dir).merge_predictions(
        [
            {key: value for key, value in row.items() if key != "index"}
            | {name: values[i] for name, values in columns.items()}
            for i, row in enumerate(rows)
        ]
    )


def to_rows(columns: Mapping[str, Sequence[Any]]) -> list[Row]:
    """Turn columns of one length into rows."""
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def gather_rows(rows: list[Row]) -> list[Row]:
    """Gather the rows of all ranks, sorted by "index"; a row that several ranks have counts once.

    Samplers may repeat rows so that all ranks have the same number.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        parts: list[list[Row]] = [[] for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather_object(parts, rows)
        rows = [row for part in parts for row in part]
    by_index = {row["index"]: row for row in rows}
    return [by_index[index] for index in sorted(by_index)]
