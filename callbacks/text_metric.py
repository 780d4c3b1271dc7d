"""Collect generated texts, score them, and record the scores."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
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


class RowCollector(Callback, ABC):
    """Collect one row per example of the running evaluation, on this rank."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    @abstractmethod
    def make_rows(self, batch: Any, outputs: Any) -> list[Row]:
        """Return the rows of a batch, each with its "index", from what its step returned."""

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

    on_validation_epoch_start = on_test_epoch_start = start_rows
    on_validation_batch_end = on_test_batch_end = collect_rows

    def take_rows(self) -> list[Row]:
        """Return the rows of all ranks in the order of the split, and forget them."""
        rows, self.rows = gather_rows(self.rows), []
        return rows


class TextCollector(RowCollector):
    """Collect the texts of the running evaluation, on this rank."""

    def make_rows(self, batch: Any, outputs: Any) -> list[Row]:
        """Pair the batch's rows with their texts."""
        return make_rows(batch, outputs)


class PredictionWriter(Callback):
    """Write the texts of `predict` to predictions.jsonl."""

    def on_predict_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start with no rows."""
        self.rows: list[Row] = []

    def on_predict_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Collect the batch's texts."""
        self.rows += make_rows(batch, {"predictions": outputs})

    def on_predict_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the texts."""
        rows, self.rows = gather_rows(self.rows), []
        if trainer.is_global_zero:
            write_predictions(trainer, rows)


class TextMetricCallback(TextCollector, ABC):
    """Score generated texts with one value per example; subclasses implement :meth:`score`.

    One that gathers the values of the ranks by itself implements :meth:`gather_scores` instead.

    Validation logs the means as `val/<name>`, a test as `test/<name>`; summary.json gets them with
    n and 95 % interval, and predictions.jsonl a test's values per example. If the module also
    returns texts from before training, columns come in pairs (`<name>`, `<name>_before`), and
    `test/<name>_change` is the mean paired difference.
    """

    def score(self, pl_module: L.LightningModule, rows: Sequence[Row]) -> Columns:
        """Score this rank's rows.

        Args:
            pl_module: The module that generated the texts.
            rows: At least one row. Fields added to a row are written to predictions.jsonl too.

        Returns:
            One value per row for each metric; the same names on every rank.
        """
        raise NotImplementedError

    def gather_scores(self, pl_module: L.LightningModule, rows: list[Row]) -> list[Row]:
        """Score this rank's rows, which may be none, and gather those of all ranks.

        Returns:
            The rows of rank 0, rank 1, ..., each with its values by metric in "scores".
        """
        return all_gather(add_scores(rows, self.score(pl_module, rows) if rows else {}))

    def estimates(self, columns: Columns) -> dict[str, Estimate]:
        """Turn columns into means with intervals, and pairs of columns into changes."""
        return estimate_columns(columns)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the means; a fit records them."""
        if not trainer.sanity_checking:
            _, columns = self._scored(pl_module)
            record = trainer.state.fn == TrainerFn.FITTING
            log_estimates(trainer, pl_module, "val", self.estimates(columns), record)

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log and record the means; write the values per example."""
        rows, columns = self._scored(pl_module)
        log_estimates(trainer, pl_module, "test", self.estimates(columns))
        if trainer.is_global_zero and rows:
            write_predictions(trainer, rows, columns)

    def _scored(self, pl_module: L.LightningModule) -> tuple[list[Row], Columns]:
        """Score this rank's rows, and gather those of all ranks in the order of the split."""
        rows, self.rows = order_rows(self.gather_scores(pl_module, self.rows)), []
        scores = [row.pop("scores") for row in rows]
        names = scores[0] if scores else {}
        return rows, {name: [score[name] for score in scores] for name in names}


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


def score_texts(
    rows: Sequence[Row], score: Callable[[Sequence[str]], Columns]
) -> dict[str, Sequence[float]]:
    """Score the rows' predictions, and as "<name>_before" the texts from before training.

    Args:
        rows: At least one row.
        score: Returns one value per text for each metric; text i belongs to row i.
    """
    columns = dict(score([row["prediction"] for row in rows]))
    if "prediction_before" in rows[0]:
        before = score([row["prediction_before"] for row in rows])
        columns |= {f"{name}_before": values for name, values in before.items()}
    return columns


def measure_texts(
    rows: Sequence[Row], metrics: Mapping[str, TextMetric]
) -> dict[str, Sequence[float]]:
    """Score the rows like :func:`score_texts`, with functions of texts."""
    dialogues = [row["dialogue"] for row in rows]
    references = [row["references"] for row in rows]

    def measure(texts: Sequence[str]) -> Columns:
        return {name: metric(texts, dialogues, references) for name, metric in metrics.items()}

    return score_texts(rows, measure)


def make_rows(batch: Mapping[str, Any], outputs: Mapping[str, Any]) -> list[Row]:
    """Pair a batch with the texts that a step generated for it.

    Args:
        batch: A batch of the data module: "index", "ids", "dialogues", "references".
        outputs: What the step returned: "predictions" and perhaps "predictions_before".

    Returns:
        One row per example.

    Raises:
        ValueError: The step returned no texts, or not one per example.
    """
    if not isinstance(outputs, Mapping) or "predictions" not in outputs:
        raise ValueError(
            "The step returned no 'predictions': validation_step and test_step must return "
            '{"loss": ..., "predictions": [text, ...]}.'
        )
    fields = {
        "index": batch["index"].tolist(),
        "id": batch["ids"],
        "dialogue": batch["dialogues"],
        "references": batch["references"],
        "prediction": outputs["predictions"],
    }
    if "predictions_before" in outputs:
        fields["prediction_before"] = outputs["predictions_before"]
    lengths = {name: len(values) for name, values in fields.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"A step must return one text per example; got lengths {lengths}.")
    return [dict(zip(fields, values, strict=True)) for values in zip(*fields.values(), strict=True)]


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


def add_scores(rows: Sequence[Row], columns: Columns) -> list[Row]:
    """Return the rows, each with its values by metric in "scores"."""
    return [
        row | {"scores": {name: values[i] for name, values in columns.items()}}
        for i, row in enumerate(rows)
    ]


def gather_rows(rows: list[Row]) -> list[Row]:
    """Gather the rows of all ranks on each of them, in the order of :func:`order_rows`."""
    return order_rows(all_gather(rows))


def all_gather(rows: list[Row]) -> list[Row]:
    """Gather the rows of all ranks on each of them: those of rank 0, rank 1, ..."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return rows
    parts: list[list[Row]] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(parts, rows)
    return [row for part in parts for row in part]


def order_rows(rows: Sequence[Row]) -> list[Row]:
    """Sort rows by "index", each index once: samplers may repeat rows to fill up ranks."""
    by_index = {row["index"]: row for row in rows}
    return [by_index[index] for index in sorted(by_index)]
