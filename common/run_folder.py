"""The run folder: where everything that a run leaves behind lies, and how it is written.

Every write goes to a temporary neighbour first and is then renamed, so a killed run never leaves
half a file. Only rank 0 may write; the callers see to that.
"""

import csv
import json
import logging
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from common.jsonl import sync, to_lines
from metrics.intervals import Estimate

log = logging.getLogger(__name__)

_ROLLOUT_NAME = re.compile(r"batch(\d{6,})(?:-rank(\d+)\.jsonl?|\.ckpt)")

PARTIAL = ".partial"
"""End of the name of a file that is being written."""


class RunFolder:
    """Names, reads and writes the entries of one run folder.

    Args:
        path: The folder. It need not exist yet.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.test_config = self.path / "config.test.yaml"  # of a test beside its fit
        self.metrics_csv = self.path / "metrics.csv"
        self.summary = self.path / "summary.json"
        self.predictions = self.path / "predictions.jsonl"
        self.samples = self.path / "samples.jsonl"
        self.rollouts = self.path / "rollouts"
        self.nonfinite = self.path / "nonfinite"
        self.checkpoints = self.path / "checkpoints"
        self.export = self.path / "export"
        self.plots = self.path / "plots"

    @property
    def entries(self) -> tuple[Path, ...]:
        """Every path that a run may leave; nothing else in the folder is ever touched."""
        configs = (self.config, *self.path.glob("config.*.yaml"))  # of a test beside its fit
        files = (*configs, self.metrics_csv, self.summary, self.predictions, self.samples)
        return (*files, self.rollouts, self.nonfinite, self.checkpoints, self.export, self.plots)

    def holds_run(self) -> bool:
        """Whether any entry of a run lies here."""
        return any(entry.exists() for entry in self.entries)

    def clear(self) -> None:
        """Remove the entries of a run; files of other names stay."""
        for entry in self.entries:
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink(missing_ok=True)

    def read_summary(self) -> dict[str, Any]:
        """Read summary.json.

        Returns:
            Its fields; empty where the file does not exist.

        Raises:
            ValueError: The file is not a JSON object.
        """
        if not self.summary.exists():
            return {}
        try:
            fields = json.loads(self.summary.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(
                f"{self.summary} is not JSON ({error}); delete it or repeat the run."
            ) from error
        if not isinstance(fields, dict):
            raise ValueError(f"{self.summary} holds no JSON object; delete it or repeat the run.")
        return fields

    def update_summary(self, **fields: Any) -> None:
        """Set the given top-level fields of summary.json and keep the others."""
        merged = self.read_summary() | fields
        write_text(self.summary, json.dumps(merged, indent=2, ensure_ascii=False) + "\n")

    def record_metrics(self, metrics: Mapping[str, Estimate]) -> None:
        """Set entries of summary.json's "metrics", e.g. "test/rouge1", and keep the others."""
        known = self.read_summary().get("metrics", {})
        self.update_summary(
            metrics=known | {name: value._asdict() for name, value in metrics.items()}
        )

    def read_config(self) -> dict[str, Any]:
        """Read the settings that the run was started with, from config.yaml.

        Returns:
            Sections by name; empty where the file does not exist.

        Raises:
            ValueError: The file is not a YAML mapping.
        """
        return _read_settings(self.config)

    def read_test_config(self) -> dict[str, Any]:
        """Read the settings that the last test was run with; see :meth:`read_config`."""
        return _read_settings(self.test_config if self.test_config.exists() else self.config)

    def read_predictions(self) -> list[dict[str, Any]]:
        """Read predictions.jsonl.

        Returns:
            One dict a line; empty where the file does not exist.

        Raises:
            ValueError: A line is not JSON; names file and line.
        """
        if not self.predictions.exists():
            return []
        rows = []
        with self.predictions.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                try:
                    rows.append(json.loads(line))
                except ValueError as error:
                    raise ValueError(
                        f"{self.predictions}, line {number} is not JSON ({error}); repeat the test."
                    ) from error
        return rows

    def merge_predictions(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write rows to predictions.jsonl in their order, adding columns to rows that are there.

        Several callbacks write to the same rows, each its own columns. A row is recognised by its
        "id" (the k-th of several rows with one id by being the k-th). The file always describes
        one test: rows that are not in `rows` go, and so do the other columns of a row whose
        "prediction" has changed, for they were computed from another text.

        Args:
            rows: Rows with at least "id".
        """
        known = dict(_numbered(self.read_predictions()))
        merged = []
        for key, row in _numbered(rows):
            old = known.pop(key, {})
            same_text = old.get("prediction") == row.get("prediction", old.get("prediction"))
            merged.append((old if same_text else {}) | dict(row))
        if known:
            log.warning("%s: dropped %d rows of an earlier test.", self.predictions, len(known))
        write_lines(self.predictions, merged)

    def read_metrics_csv(self) -> list[dict[str, str]]:
        """Read metrics.csv: one dict a logged row, empty cells as empty strings."""
        if not self.metrics_csv.exists():
            return []
        with self.metrics_csv.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))


class RolloutFiles:
    """Names and lists the files of a run's ``rollouts/``.

    For each batch and rank ``batch000003-rank0.jsonl``, one rollout a line, and
    ``batch000003-rank0.json``, what the batch has beside its rows; and for each batch, where asked
    for, ``batch000003.ckpt``, the state before its update.

    Args:
        run_dir: The run folder.
    """

    def __init__(self, run_dir: str | Path) -> None:
        self.path = RunFolder(run_dir).rollouts

    def rows(self, batch: int, rank: int = 0) -> Path:
        """Name the file of a batch's rollouts on a rank."""
        return self.path / f"batch{batch:06d}-rank{rank}.jsonl"

    def checkpoint(self, batch: int) -> Path:
        """Name the checkpoint from before a batch's update."""
        return self.path / f"batch{batch:06d}.ckpt"

    def batches(self) -> list[int]:
        """List the batches that rank 0 has written."""
        return sorted({number for path, number, rank in self.files() if path == self.rows(number)})

    def files(self, suffix: str = "") -> Iterator[tuple[Path, int, int]]:
        """Give each file with its batch and rank; a checkpoint counts as rank 0's."""
        for path in sorted(self.path.glob(f"batch*{suffix}")):
            if found := _ROLLOUT_NAME.fullmatch(path.name):
                yield path, int(found[1]), int(found[2] or 0)


def _read_settings(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML ({error}).") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds no settings.")
    return config


def _numbered(
    rows: Iterable[Mapping[str, Any]],
) -> Iterable[tuple[tuple[str, int], dict[str, Any]]]:
    """Pair each row with (id, how often that id came before)."""
    seen: Counter[str] = Counter()
    for row in rows:
        identity = str(row["id"])
        yield (identity, seen[identity]), dict(row)
        seen[identity] += 1


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as JSON lines, atomically."""
    write_text(path, to_lines(rows))


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file atomically, making its folder where needed."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary neighbour to write to, which takes the path's place when it is complete.

    What was there before stays whole until then, also through a loss of power: the content is on
    the disk before the name is. A write that fails leaves no neighbour; one that is killed does.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}{PARTIAL}")
    try:
        yield partial
        sync(partial)
        os.replace(partial, path)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a full disk says nothing of what it had no room for
        partial.unlink(missing_ok=True)
        raise
    sync(path.parent)
