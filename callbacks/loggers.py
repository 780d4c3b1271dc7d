"""metrics.csv of the run folder: every logged scalar with its step."""

import csv
import io
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor

from common.run_folder import RunFolder, write_text

log = logging.getLogger(__name__)


class RunCSVLogger(Logger):
    """Append scalars to metrics.csv in the run folder, one row a call, on disk at once.

    Lightning's own CSVLogger deletes what an earlier stage wrote and keeps rows in memory until it
    is told to save. Here a test adds to the rows of its fit, and a killed run has lost nothing.

    Args:
        run_dir: The run folder.
    """

    def __init__(self, run_dir: str) -> None:
        super().__init__()
        self._folder = RunFolder(run_dir)
        self._columns: list[str] | None = None
        self._rows: int | None = None

    @property
    def name(self) -> str:
        """Empty, so that checkpoints lie in <run_dir>/checkpoints without further folders."""
        return ""

    @property
    def version(self) -> str:
        """Empty, as the name."""
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
            step: The training step that they belong to.
        """
        row: dict[str, Any] = {"step": 0 if step is None else step}
        for name, value in metrics.items():
            row[name] = value.item() if isinstance(value, Tensor) else value
        columns = self._known_columns()
        new = [name for name in row if name not in columns]
        self._rows = self.count_rows() + 1
        if new:
            rows = self._folder.read_metrics_csv()
            self._columns = columns + new
            self._rewrite([*rows, row])
            return
        with self.metrics_csv.open("a", encoding="utf-8", newline="") as file:
            csv.DictWriter(file, columns).writerow(row)

    def count_rows(self) -> int:
        """Count the rows on disk, by reading them once."""
        if self._rows is None:
            self._rows = len(self._folder.read_metrics_csv())
        return self._rows

    @rank_zero_only
    def keep_rows(self, count: int) -> None:
        """Drop all rows but the first `count`."""
        rows = self._folder.read_metrics_csv()
        if count < len(rows):
            log.info("%s: dropped the last %d rows", self.metrics_csv, len(rows) - count)
            self._known_columns()
            self._rewrite(rows[:count])
            self._rows = count

    def _known_columns(self) -> list[str]:
        """Columns of the file, read once."""
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
