"""Show and write what `report.py score` found."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from common.run_folder import write_lines, write_text
from metrics.intervals import Estimate
from metrics.words import BEST
from reporting.formats import LABELS, MINUS, format_estimate, format_interval

_LABELS = {
    **LABELS,
    **{key + BEST: f"{label}, best reference" for key, label in LABELS.items()},
    "words": "words",
    "length_ratio": "length / references",
    **{f"novelty{n}": f"new {n}-grams" for n in (1, 2, 3)},
    "copy_rate": "copied words",
    "copy_density": "copied at a stretch, words",
    "unfaithful_speaker": "unknown speaker",
    "unfaithful_name": "unknown name",
    "swapped_speakers": "speakers swapped",
    "toxicity": "toxicity",
}
# Counts of words; all other values are shares, and shown x 100.
_COUNTS = ("words", "copy_density")

PER_EXAMPLE_ENDINGS = (".jsonl", ".csv")


def make_score_table(found: Mapping[str, Mapping[str, Estimate]]) -> Table:
    """Lay the means out for a terminal: a row for each metric, a column for each prediction."""
    first = next(iter(found.values()))
    n = next(iter(first.values())).n
    title = f"n = {n}; x 100 but for words; 95 % intervals"
    table = Table("metric", title=title, title_justify="left")
    for name in found:
        table.add_column(escape(name), justify="right")
    for metric in _LABELS:
        if metric in first:
            cells = [_cell(metric, column[metric]) for column in found.values()]
            table.add_row(_LABELS[metric], *cells)
    return table


def make_difference_table(
    found: Mapping[str, Mapping[str, Estimate]], pairs: Sequence[tuple[str, str]]
) -> Table:
    """Lay the paired differences out: a row for each metric, a column for each pair."""
    title = "Paired differences; * is clear of 0"
    table = Table("metric", title=title, title_justify="left")
    for before, after in pairs:
        table.add_column(escape(f"{after} - {before}"), justify="right")
    for metric, label in _LABELS.items():
        changes = [found[after].get(f"{metric}{MINUS}{before}") for before, after in pairs]
        if all(changes):
            cells = [_cell(metric, change, sign=True) for change in changes if change]
            table.add_row(label, *cells)
    return table


def write_scores(path: Path, found: Mapping[str, Mapping[str, Estimate]]) -> None:
    """Write means and differences with n and interval, as fractions of 1 and numbers of words."""
    fields = {
        name: {metric: estimate._asdict() for metric, estimate in column.items()}
        for name, column in found.items()
    }
    write_text(path, json.dumps(fields, indent=2, ensure_ascii=False) + "\n")


def write_per_example(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a line for each example and prediction column; in csv a list is joined by "; "."""
    if path.suffix.lower() == ".jsonl":
        write_lines(path, rows)
        return
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(
            {k: "; ".join(cell) if isinstance(cell, list) else cell for k, cell in row.items()}
        )
    write_text(path, text.getvalue())


def find_output_problem(out: Path, per_example: Path | None, inputs: Sequence[Path]) -> str | None:
    """Say why the results cannot be written where they were asked for."""
    taken = {path.resolve() for path in inputs}
    for option, path in (("--out", out), ("--per_example", per_example)):
        if path is None:
            continue
        if path.resolve() in taken:
            return f"{option} {path} would overwrite another file of this call; name another."
        if path.is_dir():
            return f"{option} {path} is a folder; name a file."
        taken.add(path.resolve())
    if per_example is not None and per_example.suffix.lower() not in PER_EXAMPLE_ENDINGS:
        return f"--per_example {per_example} has to end in {' or '.join(PER_EXAMPLE_ENDINGS)}."
    return None


def _cell(metric: str, estimate: Estimate, sign: bool = False) -> str:
    """Value and interval, a star where a difference is clear of 0."""
    scale = 1 if metric in _COUNTS else 100
    interval = format_interval(estimate, sign, scale)
    low, high = estimate.low, estimate.high
    clear = sign and low is not None and high is not None and (low > 0 or high < 0)
    text = format_estimate(estimate, sign, scale)
    return f"{text} ({interval}){' *' if clear else ''}" if interval else text
