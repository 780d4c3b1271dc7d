"""Read run folders for comparison."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

from common.run_folder import RunFolder
from metrics.intervals import Estimate
from reporting.charts import Series
from reporting.scoring import Scoring, find_scoring

T = TypeVar("T")

Key = tuple[str, str]
"""What one test example is recognised by in several runs: its id and its dialogue."""


@dataclass(frozen=True, eq=False)
class Run:
    """One run as read from its folder.

    Attributes:
        name: What tables call it.
        path: The folder.
        summary: The fields of summary.json.
        metrics: Its final metrics by their logged names.
        rows: The rows of predictions.jsonl by example; empty where there are none.
        curves: Each logged metric's finite values over the steps, from metrics.csv.
        config: config.yaml; empty where there is none.
        scoring: How its test measured toxicity; None where that is not known.
        problems: What of the folder could not be read, a sentence each.
    """

    name: str
    path: Path
    summary: dict[str, Any]
    metrics: dict[str, Estimate]
    rows: dict[Key, dict[str, Any]]
    curves: dict[str, Series]
    config: dict[str, Any]
    scoring: Scoring | None = None
    problems: tuple[str, ...] = ()
    _columns: dict[str, dict[Key, float]] = field(default_factory=dict, init=False, repr=False)

    @property
    def has_model(self) -> bool:
        """Whether a model made the texts, and not people or a rule."""
        return (self.summary.get("parameters") or {}).get("total") != 0

    @property
    def method(self) -> str:
        """What was run, e.g. "soft_prompt"; the run's name where the folder does not say."""
        return str(self.summary.get("method") or self.name)

    @property
    def seed(self) -> int | None:
        """Seed of everything random in it; None where there is none."""
        seed = self.summary.get("seed")
        return seed if isinstance(seed, int) else None

    @property
    def trainable(self) -> int | None:
        """Number of trained parameters; None where it is unknown."""
        return (self.summary.get("parameters") or {}).get("trainable")

    @property
    def references(self) -> tuple[int, int] | None:
        """Fewest and most references of an example; None where unknown."""
        counts = [len(row["references"]) for row in self.rows.values() if "references" in row]
        return (min(counts), max(counts)) if counts else None

    def values(self, metric: str) -> dict[Key, float]:
        """Give the examples' values of a metric, of those that have a finite one."""
        if metric not in self._columns:
            self._columns[metric] = {
                key: float(row[metric])
                for key, row in self.rows.items()
                if is_number(row.get(metric))
            }
        return self._columns[metric]


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value from a file is a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)


def read_runs(paths: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """Read run folders for comparison; see :func:`read_each`.

    What of a folder could not be read is among the sentences too.
    """
    runs, problems = read_each(paths, read_run)
    return runs, problems + [f"{run.path}: {one}" for run in runs for one in run.problems]


def read_each(paths: Sequence[Path], read: Callable[[Path, str], T]) -> tuple[list[T], list[str]]:
    """Read run folders, each by itself.

    Args:
        paths: The folders.
        read: Reads the run in a folder that is there, and calls it by a name.

    Returns:
        The good runs in the given order, and one sentence for each folder that could not be read.
    """
    runs, problems = [], []
    names = [path.resolve().name for path in paths]
    for path, name in zip(paths, names, strict=True):
        try:
            if not path.is_dir():
                raise ValueError("there is no such folder.")
            runs.append(read(path, name if names.count(name) == 1 else str(path)))
        except (ValueError, OSError) as error:
            problems.append(f"{path}: {error}")
    return runs, problems


def read_run(path: Path, name: str) -> Run:
    """Read one run folder.

    A file that is broken is left out, with a sentence that says so, as long as summary.json is
    whole and has metrics: these are what the run said of itself.

    Raises:
        ValueError: Its summary is missing or broken, or nothing else can be read.
    """
    folder = RunFolder(path)
    summary = folder.read_summary()
    if not summary:
        raise ValueError("there is no summary.json in it; did the run finish?")
    metrics = _read_metrics(summary)
    _check(summary)
    problems: list[str] = []
    rows: dict[Key, dict[str, Any]] = {}
    curves: dict[str, Series] = {}
    config: dict[str, Any] = {}
    scoring: Scoring | None = None
    try:
        rows = _read_rows(folder)
    except (ValueError, OSError) as error:
        if not metrics:
            raise
        problems.append(f"shown without its examples: {error}")
    try:
        curves = _read_curves(folder)
    except (ValueError, OSError) as error:
        problems.append(f"shown without its curves: {error}")
    try:
        config = folder.read_config()
        scoring = find_scoring(folder.read_test_config())
    except (ValueError, OSError) as error:
        problems.append(f"shown without its settings: {error}")
    return Run(name, path, summary, metrics, rows, curves, config, scoring, tuple(problems))


def _read_metrics(summary: Mapping[str, Any]) -> dict[str, Estimate]:
    try:
        metrics = {key: Estimate(**fields) for key, fields in summary.get("metrics", {}).items()}
        for name, (value, *rest) in metrics.items():
            if not is_number(value) or not all(one is None or is_number(one) for one in rest):
                raise TypeError(f"{name} has something else than finite numbers")
    except (TypeError, AttributeError) as error:
        raise ValueError(
            f'"metrics" in summary.json is not {{name: {{value, n, low, high}}}} ({error}).'
        ) from error
    return metrics


def _check(summary: Mapping[str, Any]) -> None:
    """Refuse a summary whose other fields are of another shape than a run writes them in."""
    for name in ("versions", "parameters", "data"):
        if not isinstance(summary.get(name) or {}, dict):
            raise ValueError(f'"{name}" in summary.json is not an object; repeat the run.')
    if not all(map(is_number, (summary.get("parameters") or {}).values())):
        raise ValueError('"parameters" in summary.json is not {name: number}; repeat the run.')
    if not all(isinstance(split, dict) for split in (summary.get("data") or {}).values()):
        raise ValueError('"data" in summary.json is not {split: {...}}; repeat the run.')


def _read_rows(folder: RunFolder) -> dict[Key, dict[str, Any]]:
    rows: dict[Key, dict[str, Any]] = {}
    for number, row in enumerate(folder.read_predictions(), start=1):
        if not isinstance(row, dict) or "id" not in row:
            raise ValueError(
                f"a row of predictions.jsonl is not as it should be (line {number} is no object "
                "with an id)."
            )
        if not isinstance(row.get("references", []), list):
            raise ValueError(
                "a row of predictions.jsonl is not as it should be "
                f"(line {number}: references are no list)."
            )
        rows[str(row["id"]), str(row.get("dialogue"))] = row
    return rows


def _read_curves(folder: RunFolder) -> dict[str, Series]:
    rows = folder.read_metrics_csv()
    names = dict.fromkeys(name for row in rows[:1] for name in row if name != "step")
    try:
        curves = {name: take_series(rows, name) for name in names if isinstance(name, str)}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"a row of metrics.csv is not as it should be ({error!r}).") from error
    return {name: curve for name, curve in curves.items() if curve.steps}


def take_series(rows: Sequence[Mapping[str, str]], name: str) -> Series:
    """Take one metric's finite values and their steps from the rows of metrics.csv."""
    found = [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
    finite = [(step, value) for step, value in found if math.isfinite(value)]
    return Series([step for step, _ in finite], [value for _, value in finite])


def late(values: Sequence[float]) -> Sequence[float]:
    """The last quarter of what PPO logged, which stands for the end of its training."""
    return values[-max(1, len(values) // 4) :]
