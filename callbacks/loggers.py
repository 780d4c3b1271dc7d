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

    Lightning counts batches by default, which in PPO are several optimizer steps each. It takes a
    logged metric of the name `step` instead, for all loggers.
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

    def __init__(self, run_dir: str) -> None:
        super().__init__()
        self._folder = RunFolder(run_dir)
        self._columns: list[str] = []
        self._rows: list[dict[str, Any]] = []
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

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: config.yaml in the run folder has every setting."""

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
        self._read()
        number = self._kept.get(make_key(row), len(self._rows))
        appends = number == len(self._rows) and row.keys() <= set(self._columns)
        self._columns += [name for name in row if name not in self._columns]
        self._rows[number : number + 1] = [row]
        if not appends:
            self._write()
            return
        with self._folder.metrics_csv.open("a", encoding="utf-8", newline="") as file:
            csv.DictWriter(file, self._columns).writerow(row)

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Remove the rows after a step, when a run resumes from a checkpoint of that step.

        A row of the step itself may have been logged after the checkpoint. The resumed run logs it
        again, and replaces it.
        """
        self._read()
        if self._rows:
            self._rows = [row for row in self._rows if int(row["step"]) <= step]
            self._kept = {make_key(row): number for number, row in enumerate(self._rows)}
            self._write()

    def _read(self) -> None:
        """Read the file once; a kill may have cut its last row off."""
        if self._columns or not self._folder.metrics_csv.exists():
            return
        text = self._folder.metrics_csv.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        reader = csv.DictReader(io.StringIO(whole))
        self._columns = list(reader.fieldnames or [])
        self._rows = list(reader)
        if whole != text:
            self._write()

    def _write(self) -> None:
        """Write the whole file."""
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns)
        writer.writeheader()
        writer.writerows(self._rows)
        write_text(self._folder.metrics_csv, text.getvalue())


def make_key(row: Mapping[str, Any]) -> tuple[int, frozenset[str]]:
    """Identify a row by its step and the metrics that it has."""
    return int(row["step"]), frozenset(name for name in row if row[name] not in ("", None))
