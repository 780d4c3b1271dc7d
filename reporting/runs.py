"""Read run folders for comparison."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from metrics.intervals import Estimate
from run_folder import RunFolder

T = TypeVar("T")


class Run(NamedTuple):
    """One run as read from its folder.

    Attributes:
        name: What tables call it.
        summary: The fields of summary.json.
        metrics: Its final metrics by their logged names.
        examples: The test examples' rouge1 by (id, dialogue); empty where unknown.
        references: Fewest and most references of an example; None where unknown.
    """

    name: str
    summary: dict[str, Any]
    metrics: dict[str, Estimate]
    examples: dict[tuple[str, str], float]
    references: tuple[int, int] | None = None

    @property
    def has_model(self) -> bool:
        """Whether a model made the texts, and not people or a rule."""
        return (self.summary.get("parameters") or {}).get("total") != 0


def read_runs(paths: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """Read run folders for comparison; see :func:`read_each`."""
    return read_each(paths, read_run)


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

    Raises:
        ValueError: Its summary is missing, or a file is broken; says which.
    """
    folder = RunFolder(path)
    summary = folder.read_summary()
    if not summary:
        raise ValueError("there is no summary.json in it; did the run finish?")
    try:
        metrics = {key: Estimate(**fields) for key, fields in summary.get("metrics", {}).items()}
        for estimate in metrics.values():
            float(estimate.value)
    except (TypeError, AttributeError) as error:
        raise ValueError(
            f'"metrics" in summary.json is not {{name: {{value, n, low, high}}}} ({error}).'
        ) from error
    try:
        rows = [row for row in folder.read_predictions() if "id" in row and "rouge1" in row]
        examples = {
            (str(row["id"]), str(row.get("dialogue"))): float(row["rouge1"]) for row in rows
        }
        counts = [len(row["references"]) for row in rows if "references" in row]
    except (TypeError, AttributeError) as error:
        raise ValueError(f"a row of predictions.jsonl is not as it should be ({error}).") from error
    references = (min(counts), max(counts)) if counts else None
    return Run(name, summary, metrics, examples, references)
