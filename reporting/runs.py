"""Read run folders for comparison."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, TypeGuard

from common.run_folder import RunFolder, expand
from metrics.intervals import Estimate
from reporting.charts import Series

Key = tuple[str, str]
"""Identifies a test example across runs: its id and its dialogue."""

Row = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Run:
    """One run as read from its folder.

    Attributes:
        name: Name in tables.
        path: The folder.
        summary: The fields of summary.json.
        metrics: Final metrics by their logged names.
        rows: Rows of predictions.jsonl by example; empty if there are none.
        curves: Finite values of each logged metric over the steps, from metrics.csv.
        config: config.yaml; empty if there is none.
        classifier: How its test measured toxicity; empty if unknown.
        problems: Sentences about files that could not be read.
    """

    name: str
    path: Path
    summary: dict[str, Any]
    metrics: dict[str, Estimate]
    rows: dict[Key, Row] = field(default_factory=dict)
    curves: dict[str, Series] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    classifier: dict[str, Any] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    _columns: dict[str, dict[Key, float]] = field(default_factory=dict, init=False, repr=False)

    @property
    def has_model(self) -> bool:
        """Whether a model wrote the texts, not people or a rule."""
        return (self.summary.get("parameters") or {}).get("total") != 0

    @property
    def method(self) -> str:
        """The method, e.g. "soft_prompt"; the run's name if the folder does not tell."""
        return str(self.summary.get("method") or self.name)

    @property
    def seed(self) -> int | None:
        """The seed; None if there is none."""
        seed = self.summary.get("seed")
        return seed if isinstance(seed, int) else None

    @property
    def trainable(self) -> int | None:
        """Number of trained parameters; None if unknown."""
        return (self.summary.get("parameters") or {}).get("trainable")

    @property
    def date(self) -> date:
        """The day on which summary.json was last written."""
        return date.fromtimestamp(RunFolder(self.path).summary.stat().st_mtime)

    def values(self, metric: str) -> dict[Key, float]:
        """Return a metric of every example that has a finite value."""
        if metric not in self._columns:
            self._columns[metric] = {
                key: float(row[metric])
                for key, row in self.rows.items()
                if is_number(row.get(metric))
            }
        return self._columns[metric]


def is_number(value: object) -> TypeGuard[float]:
    """Return whether a value from a file is a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)


def round_number(value: object, digits: int = 4) -> float | None:
    """Round a value from a file for the page; None if it is not a finite number."""
    return round(value, digits) if is_number(value) else None


def read_runs(paths: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """Read run folders; a folder that cannot be read does not prevent reading the others.

    Returns:
        The readable runs in the given order, and a sentence about each folder or file that could
        not be read.
    """
    runs, problems = [], []
    names = [path.resolve().name for path in paths]
    for path, name in zip(paths, names, strict=True):
        try:
            if not path.is_dir():
                raise ValueError("there is no such folder.")
            runs.append(read_run(path, name if names.count(name) == 1 else str(path)))
            problems += [f"{path}: {problem}" for problem in runs[-1].problems]
        except (ValueError, OSError) as error:
            problems.append(f"{path}: {error}")
    return runs, problems


def read_run(path: Path, name: str) -> Run:
    """Read one run folder.

    If summary.json is intact and has metrics, other broken files are left out and named in
    `Run.problems`.

    Raises:
        ValueError: summary.json is missing or broken, or nothing else can be read.
    """
    folder = RunFolder(path)
    summary = folder.read_summary()
    if not summary:
        raise ValueError("there is no summary.json in it; did the run finish?")
    metrics = _read_metrics(summary)
    problems: list[str] = []

    def attempt(what: str, read: Callable[[], Any], default: Any) -> Any:
        try:
            return read()
        except (ValueError, OSError) as error:
            if what == "examples" and not metrics:
                raise
            problems.append(f"shown without its {what}: {error}")
            return default

    return Run(
        name, path, summary, metrics,
        rows=attempt("examples", lambda: _read_rows(folder), {}),
        curves=attempt("curves", lambda: _read_curves(folder), {}),
        config=attempt("settings", folder.read_config, {}),
        classifier=attempt("test settings", lambda: _read_classifier(folder), {}),
        problems=tuple(problems),
    )  # fmt: skip


def _read_metrics(summary: Mapping[str, Any]) -> dict[str, Estimate]:
    """Return the final metrics, and check the other fields that the report relies on."""
    parameters, data = summary.get("parameters") or {}, summary.get("data") or {}
    try:
        metrics = {key: Estimate(**fields) for key, fields in summary.get("metrics", {}).items()}
        for name, (value, *rest) in metrics.items():
            if not is_number(value) or not all(one is None or is_number(one) for one in rest):
                raise TypeError(f"{name} is not made of finite numbers")
        if not all(map(is_number, parameters.values())):
            raise TypeError('"parameters" are not numbers')
        for split in (*data.values(), summary.get("versions") or {}):
            split.items()
    except (TypeError, AttributeError) as error:
        raise ValueError(f"summary.json is not as a run writes it ({error}).") from error
    return metrics


def _read_classifier(folder: RunFolder) -> dict[str, Any]:
    """Return the settings that decide toxicity and reward, from the test's config.yaml."""
    settings = folder.read_test_config().get("toxicity")
    if not isinstance(settings, dict) or not settings.get("model"):
        return {}
    path = expand(settings["model"])
    defaults = {"label": "nothate", "toxic_label": "hate"}
    return {
        "model": str(path.resolve()) if path.is_dir() else settings["model"],
        **{name: settings.get(name, default) for name, default in defaults.items()},
    }


def _read_rows(folder: RunFolder) -> dict[Key, Row]:
    rows: dict[Key, Row] = {}
    for number, row in enumerate(folder.read_predictions(), start=1):
        if "id" not in row:
            raise ValueError(f"predictions.jsonl, line {number}: there is no id.")
        if not isinstance(row.get("references", []), list):
            raise ValueError(f"predictions.jsonl, line {number}: references is not a list.")
        rows[str(row["id"]), str(row.get("dialogue"))] = row
    return rows


def _read_curves(folder: RunFolder) -> dict[str, Series]:
    rows = folder.read_metrics_csv()
    names = [name for name in (rows[0] if rows else {}) if isinstance(name, str)]
    try:
        curves = {name: read_series(rows, name) for name in names if name != "step"}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"metrics.csv has a broken row ({error!r}).") from error
    return {name: curve for name, curve in curves.items() if curve.steps}


def read_series(rows: Sequence[Mapping[str, str]], name: str) -> Series:
    """Read a metric's finite values and their steps from the rows of metrics.csv."""
    found = [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
    finite = [(step, value) for step, value in found if math.isfinite(value)]
    return Series([step for step, _ in finite], [value for _, value in finite])
