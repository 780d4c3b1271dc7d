"""The last words of a fit or a test: a short table, where the files are, what to type next."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import lightning as L
import rich
from lightning.pytorch.callbacks import Callback

from common.run_folder import RunFolder
from common.versions import show_command
from metrics.intervals import Estimate
from reporting.markdown import terminal_table
from reporting.numbers import RAW, ROUGE_LABELS, Unit, format_interval, format_value, unit_of

LABELS = {**ROUGE_LABELS, "toxicity": "toxicity ↓", "f1": "F1", "ece": "calibration error ↓"}
"""Names of metrics for readers; other metrics are called as in summary.json."""

UNITS = {"evaluator": RAW, "words": RAW, "margin": RAW, "loss": Unit(1, 3)}
"""Metrics that are not shown times 100; see :func:`reporting.numbers.unit_of` for others."""

SHOWN = (
    *ROUGE_LABELS, "toxicity", "reward", "evaluator", "words", "accuracy", "f1", "ece", "margin",
    "loss",
)  # fmt: skip
"""The metrics of the table in their order; summary.json has all."""


class ClosingWords(Callback):
    """Show a run's scores with intervals, its files and the next command, on rank 0.

    It reads summary.json, and speaks once the progress bar has ended.
    """

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Show them after a fit or a test; Lightning calls this only if that succeeded."""
        if stage not in ("fit", "test") or not trainer.is_global_zero:
            return
        folder, console = RunFolder(trainer.default_root_dir), rich.get_console()
        split, title = ("test", "Test") if stage == "test" else ("val", "Last validation")
        entries = folder.read_summary().get("metrics", {})
        show_scores(entries, split, f"{title} of {folder.path}", "; all figures: summary.json")
        is_validated = any(name.startswith("val/") for name in entries)
        if stage == "fit" and trainer.enable_validation and not is_validated:
            said = "The fit ended before its first validation, so no checkpoint is the best one."
            console.print(said, soft_wrap=True)
        for name, place in list_files(folder, stage):
            console.print(f"{name:<12} {place}", soft_wrap=True, markup=False, highlight=False)


def show_scores(
    entries: Mapping[str, Mapping[str, Any]], split: str, title: str, note: str = ""
) -> None:
    """Print the table of a split's scores, if there are any; see :func:`tabulate_scores`."""
    rows, console = tabulate_scores(entries, split), rich.get_console()
    if len(rows) > 1:
        console.print(f"\n{title}", soft_wrap=True, markup=False)
        console.print(terminal_table(rows, ("metric",)), highlight=False)
        console.print(f"{describe_units(rows)}{note}\n", soft_wrap=True)


def tabulate_scores(entries: Mapping[str, Mapping[str, Any]], split: str) -> list[list[str]]:
    """Tabulate the main metrics: value, interval and n or, with a policy before, the change.

    Args:
        entries: "metrics" of summary.json.
        split: "val" or "test".

    Returns:
        Titles, then one row for each metric; a change has its own interval.
    """
    found = {
        name.removeprefix(f"{split}/"): Estimate(**entry)
        for name, entry in entries.items()
        if name.startswith(f"{split}/")
    }
    names = [name for name in SHOWN if name in found]
    changes = any(f"{name}_change" in found for name in names)
    values = ["before", "after", "change"] if changes else ["value"]
    rows = [["metric", *values, "95 % interval", "n"]]
    for name in names:
        unit = UNITS.get(name, unit_of(name))
        change, before = found.get(f"{name}_change"), found.get(f"{name}_before")
        values = [format_value(found[name], unit)]
        if changes:
            values.insert(0, "" if before is None else format_value(before, unit))
            values.append("" if change is None else format_value(change, unit, sign=True))
        shown = change or found[name]
        interval = format_interval(shown, unit, sign=shown is change)
        count = "" if shown.n is None else f"{shown.n:,}"
        rows.append([LABELS.get(name, name), *values, interval, count])
    return rows


def describe_units(rows: Sequence[Sequence[str]]) -> str:
    """Say which rows of a table are times 100."""
    raw = [name for name, *_ in rows[1:] if UNITS.get(name, unit_of(name)).scale == 1]
    return f"x 100, except {', '.join(raw)}" if raw else "x 100"


def list_files(folder: RunFolder, stage: str) -> Iterator[tuple[str, str]]:
    """Yield what a run has left, by name, and the next command to type."""
    files = {"run folder": folder.path, "export": folder.export, "plots": folder.plots}
    if stage == "test":
        files["predictions"] = folder.predictions
    yield from ((name, str(path)) for name, path in files.items() if path.exists())
    replace = ["--overwrite", "true"] if folder.predictions.exists() else []
    if stage == "test":
        yield "next", show_command(["python", "-m", "alignsum", "compare", str(folder.path)])
    elif folder.config.exists():  # a run of train.py
        command = ["python", "train.py", "test", "--config", str(folder.config), *replace]
        yield "next", show_command(command)
