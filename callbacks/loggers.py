"""metrics.csv of the run folder: every logged scalar with its step."""

import csv
import io
from collections.abc import Mapping
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor

from common.run_folder import RunFolder, write_text


class StepAxis(Callback):
    """Log everything over `step`: the optimizer steps that are complete, from 0.

    Lightning counts batches by default, which in PPO are several optimizer steps each. For all
    loggers it prefers a logged metric with the name `step`.
    """

    def log_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Set the step of the metrics that are logged next."""
        place = {"step": float(trainer.global_step), "epoch": float(trainer.current_epoch)}
        pl_module.log_dict(place, batch_size=1, sync_dist=not trainer.training)

    on_train_batch_end = on_validation_epoch_end = on_test_epoch_end = log_step


class RunCSVLogger(Logger):
    """Append scalars to metrics.csv in the run folder, one row per call, on disk at once.

    Lightning's CSVLogger deletes what an earlier stage wrote and keeps rows in memory until it is
    told to save. Here a test adds to the rows of its fit, and a killed run has lost nothing.

    Args:
        run_dir: The run folder.
    """

    name = version = ""
    """Empty, so that Lightning adds no folder."""

    def __init__(self, run_dir: str) -> None:
        super().__init__()
        self.path = RunFolder(run_dir).metrics_csv
        self._columns: list[str] = []
        self._rows: list[dict[str, Any]] = []

    @property
    def save_dir(self) -> str:
        """The run folder."""
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: config.yaml in the run folder has every setting."""

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of the file, which is read once; a kill may have truncated its last row."""
        if not self._columns and self.path.exists():
            text = self.path.read_text(encoding="utf-8")
            reader = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1]))
            self._columns = list(reader.fieldnames or [])
            self._rows = list(reader)
            if not text.endswith("\n"):
                self._write()
        return self._rows

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write one row.

        Args:
            metrics: Scalars by name.
            step: The optimizer step that they belong to.
        """
        row: dict[str, Any] = {"step": 0 if step is None else step}
        for name, value in metrics.items():
            row[name] = value.item() if isinstance(value, Tensor) else value
        if "epoch" in row:
            row["epoch"] = int(row["epoch"])
        self.rows.append(row)
        if new := [name for name in row if name not in self._columns]:
            self._columns += new
            self._write()
            return
        with self.path.open("a", encoding="utf-8", newline="") as file:
            csv.DictWriter(file, self._columns).writerow(row)

    @rank_zero_only
    def rewind(self, count: int, step: int) -> None:
        """Remove the rows that a run will write again when it resumes from a checkpoint.

        Args:
            count: Number of rows when the checkpoint was written.
            step: Its optimizer step. Lightning logs the metrics of a training step after the
                checkpoint, but those of a validation before it.
        """
        own = [row for row in self.rows[count:] if int(row["step"]) == step and is_of_step(row)]
        self._rows = self._rows[:count] + own
        if self._rows:
            self._write()

    def _write(self) -> None:
        """Write the whole file."""
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns)
        writer.writeheader()
        writer.writerows(self._rows)
        write_text(self.path, text.getvalue())


def is_of_step(row: Mapping[str, Any]) -> bool:
    """Return whether a row has what a training step logged: no validation, no learning rate."""
    names = {name for name, value in row.items() if value not in ("", None)}
    return "epoch" in names and not any(name.startswith("val/") for name in names)
