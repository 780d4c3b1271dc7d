"""Name, read and write the files of a run folder.

Every file is written under a temporary name and then renamed, so a killed run never leaves a
partial file. Only rank 0 may write; callers ensure that.
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

from common.jsonl import read_jsonl, sync, to_lines

log = logging.getLogger(__name__)

PARTIAL = ".partial"
"""Suffix of a file that is being written."""

_ROLLOUT_FILE = re.compile(r"batch(\d{6,})-rank(\d+)\.jsonl")


def expand(path: str | Path) -> Path:
    """Replace a leading ``~`` or ``~user`` by the home folder.

    Raises:
        ValueError: If there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(
            f"{path}: no such user; for a file or folder with this name write ./{path}"
        ) from error


_FIRST_FIELDS = ("command", "method", "backbone", "parameters", "seed", "seconds", "versions")
"""What a reader of summary.json looks for first."""


class RunFolder:
    """The files of one run.

    Args:
        path: The folder; it need not exist.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.test_config = self.path / "config.test.yaml"  # of a test after the fit
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
        """Every path that a run may write; nothing else in the folder is ever deleted."""
        configs = (self.config, *self.path.glob("config.*.yaml"))
        files = (*configs, self.metrics_csv, self.summary, self.predictions, self.samples)
        return (*files, self.rollouts, self.nonfinite, self.checkpoints, self.export, self.plots)

    def holds_run(self) -> bool:
        """Return whether any file of a run exists."""
        return any(entry.exists() for entry in self.entries)

    def has_only_begun(self) -> bool:
        """Whether a fit may start again here: no run, or one without a checkpoint or result."""
        finished = (self.predictions, self.export, *self.checkpoints.glob("[!.]*.ckpt"))
        return not any(path.exists() for path in finished)

    def clear(self) -> None:
        """Delete the files of a run; files with other names stay."""
        for entry in self.entries:
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink(missing_ok=True)

    def read_summary(self) -> dict[str, Any]:
        """Read summary.json.

        Returns:
            Its fields; empty if the file does not exist.

        Raises:
            ValueError: If the file is not a JSON object.
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
        """Set top-level fields of summary.json and keep the others."""
        known = self.read_summary() | fields
        first = {name: known[name] for name in _FIRST_FIELDS if name in known}
        merged = first | known
        write_text(self.summary, json.dumps(merged, indent=2, ensure_ascii=False) + "\n")

    def record_metrics(
        self,
        metrics: Mapping[str, tuple[float, int | None, float | None, float | None]],
    ) -> None:
        """Set entries of "metrics" in summary.json and keep the others.

        Args:
            metrics: By name, e.g. "test/rouge1": value, n, and the interval's low and high end.
        """
        known = self.read_summary().get("metrics", {})
        fields = ("value", "n", "low", "high")
        new = {name: dict(zip(fields, value, strict=True)) for name, value in metrics.items()}
        self.update_summary(metrics=known | new)

    def read_config(self) -> dict[str, Any]:
        """Read the settings of the fit from config.yaml.

        Returns:
            Sections by name; empty if the file does not exist.

        Raises:
            ValueError: If the file is not a YAML mapping.
        """
        return _read_settings(self.config)

    def read_test_config(self) -> dict[str, Any]:
        """Read the settings of the last test; see :meth:`read_config`."""
        return _read_settings(self.test_config if self.test_config.exists() else self.config)

    def read_predictions(self) -> list[dict[str, Any]]:
        """Read predictions.jsonl.

        Returns:
            One dict a line; empty if the file does not exist.

        Raises:
            ValueError: If a line is not a JSON object; names file and line.
        """
        if not self.predictions.exists():
            return []
        rows = []
        for number, row in read_jsonl(self.predictions):
            if isinstance(row, str):
                raise ValueError(f"{self.predictions}, line {number}: {row}; repeat the test.")
            rows.append(row)
        return rows

    def merge_predictions(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write rows to predictions.jsonl in their order; add columns to existing rows.

        Several callbacks write their columns to the same rows. Rows match by their "id" and, if an
        id occurs more than once, by occurrence. The file always describes one test: rows missing
        from `rows` are dropped, and so are the other columns of a row whose "prediction" changed.

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
        """Read metrics.csv: one dict per logged row, with "" for empty cells."""
        if not self.metrics_csv.exists():
            return []
        with self.metrics_csv.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))


class RolloutFiles:
    """Name and list the files of a run's ``rollouts/``: one for each batch and rank.

    Args:
        run_dir: The run folder.
    """

    def __init__(self, run_dir: str | Path) -> None:
        self.path = RunFolder(run_dir).rollouts

    def rows(self, batch: int, rank: int = 0) -> Path:
        """Return the path of a batch's rollouts on a rank, one JSON object a line."""
        return self.path / f"batch{batch:06d}-rank{rank}.jsonl"

    def batches(self) -> list[int]:
        """List the batches that rank 0 has written."""
        return sorted(number for path, number, _ in self.files() if path == self.rows(number))

    def files(self) -> Iterator[tuple[Path, int, int]]:
        """Yield each file with its batch and rank."""
        for path in sorted(self.path.glob("batch*.jsonl")):
            if found := _ROLLOUT_FILE.fullmatch(path.name):
                yield path, int(found[1]), int(found[2])


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
    """Yield each row with the key (id, how often that id occurred before)."""
    seen: Counter[str] = Counter()
    for row in rows:
        identity = str(row["id"])
        yield (identity, seen[identity]), dict(row)
        seen[identity] += 1


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as JSON lines, atomically."""
    write_text(path, to_lines(rows))


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file atomically, creating its folder."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to, and rename it to `path` at the end.

    The old file stays complete until then, even if power is lost: the content is synced to disk
    before it is renamed. A write that fails removes the temporary file; a killed one leaves it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}{PARTIAL}")
    try:
        yield partial
        sync(partial)
        os.replace(partial, path)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # errors for a full disk name no file
        partial.unlink(missing_ok=True)
        raise
    sync(path.parent)
