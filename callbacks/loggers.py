"""metrics.csv of the run folder: every logged scalar with its step."""

import csv
import io
import itertools
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor

from common.run_folder import RunFolder, write_text

log = logging.getLogger(__name__)


class StepAxis(Callback):
    """Log everything over `step`: the optimizer steps that are complete, from 0.

    Lightning counts batches by default, which in PPO are several optimizer steps each. It takes a
    logged metric of the name `step` instead, for all loggers.
    """

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Set the step of the training metrics."""
        self._log(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Set the step of the validation metrics."""
        self._log(trainer, pl_module)

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Set the step of the test metrics."""
        self._log(trainer, pl_module)

    def _log(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        place = {"step": float(trainer.global_step), "epoch": float(trainer.current_epoch)}
        pl_module.log_dict(place, batch_size=1, sync_dist=not trainer.training)


class RunCSVLogger(Logger):
    """Append scalars to metrics.csv in the run folder, one row per call, on disk at once.

    Lightning's CSVLogger deletes what an earlier stage wrote and keeps rows in memory until it is
    told to save. Here a test adds to the rows of its fit, and a killed run has lost nothing.

    Args:
        run_dir: The run folder.
    """

    def __init__(self, run_dir: str) -> None:
        super().__init__()
        self._folder = RunFolder(run_dir)
        self._columns: list[str] | None = None
        self._kept: dict[tuple[int, frozenset[str]], int] = {}
        """Numbers of the rows that were there when the run resumed."""

    @property
    def name(self) -> str:
        """Empty, so that Lightning adds no folder of its own."""
        return ""

    @property
    def version(self) -> str:
        """Empty, like the name."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run folder."""
        return str(self._folder.path)

    @property
    def metrics_csv(self) -> Path:
        """The file that is written."""
        return self._folder.metrics_csv

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: config.yaml in the run folder has every setting."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append one row.

        Args:
            metrics: Scalars by name.
            step: The optimizer step that they belong to.
        """
        row: dict[str, Any] = {"step": 0 if step is None else step}
        for name, value in metrics.items():
            row[name] = value.item() if isinstance(value, Tensor) else value
        if "epoch" in row:
            row["epoch"] = int(row["epoch"])
        columns = self._known_columns()
        if (number := self._kept.get(_key(row))) is not None:
            rows = self._folder.read_metrics_csv()
            self._rewrite([*rows[:number], row, *rows[number + 1 :]])
            return
        if new := [name for name in row if name not in columns]:
            rows = self._folder.read_metrics_csv()
            self._columns = columns + new
            self._rewrite([*rows, row])
            return
        with self.metrics_csv.open("a", encoding="utf-8", newline="") as file:
            csv.DictWriter(file, columns).writerow(row)

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Remove the rows after a step, when a run resumes from a checkpoint of that step.

        A row of the step itself may have been logged after the checkpoint. The resumed run logs it
        again, and replaces it.
        """
        if not self.metrics_csv.exists():
            return
        text = self.metrics_csv.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]  # a kill may have cut the last row off
        rows = list(csv.DictReader(io.StringIO(whole, newline="")))
        kept = list(itertools.takewhile(lambda row: int(row["step"]) <= step, rows))
        if whole != text or len(kept) < len(rows):
            log.info(
                "Removed %d rows after step %d from %s",
                len(rows) - len(kept),
                step,
                self.metrics_csv,
            )
            self._known_columns()
            self._rewrite(kept)
        self._kept = {_key(row): number for number, row in enumerate(kept)}

    def _known_columns(self) -> list[str]:
        """Return the columns of the file, read once."""
        if self._columns is None:
            self._columns = []
            if self.metrics_csv.exists():
                with self.metrics_csv.open(encoding="utf-8", newline="") as file:
                    self._columns = next(csv.reader(file), [])
        return self._columns

    def _rewrite(self, rows: list[dict[str, Any]]) -> None:
        """Write the whole file with the columns known by now."""
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns or [], lineterminator="\r\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.metrics_csv, text.getvalue())


def _key(row: Mapping[str, Any]) -> tuple[int, frozenset[str]]:
    """Identify a row by its step and the metrics that it has."""
    return int(row["step"]), frozenset(
        name for name, value in row.items() if value not in ("", None)
    )
