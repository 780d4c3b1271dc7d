"""Runs as a table: rows of texts, then for a terminal (rich) and for a page (Markdown)."""

import math
from collections.abc import Mapping, Sequence

from rich.table import Table

from metrics.intervals import Estimate
from metrics.rouge import KEYS
from reporting.markdown import lay_table
from reporting.runs import Run

LABELS = dict(zip(KEYS, ("ROUGE-1", "ROUGE-2", "ROUGE-L", "ROUGE-Lsum"), strict=True))
_COLUMNS = (
    "run", "n", "refs", *LABELS.values(), "toxicity", "trainable", "time", "peak memory", "notes",
)  # fmt: skip
_NONE = "-"
_CAPTION = (
    "ROUGE F1 and toxicity x 100 on the test split, with 95 % bootstrap intervals over n "
    "dialogues; ROUGE is the mean over the references (refs) of a dialogue; time is that of "
    "training (of the test where nothing is trained), memory the peak of the GPU's tensors (of the "
    "whole process where there is no GPU)."
)


def make_row(run: Run) -> list[str]:
    """One run's cells; a line break inside a cell stands before the interval."""
    rouge = [run.metrics.get(f"test/{key}") for key in KEYS]
    n = next((one.n for one in rouge if one is not None), None)
    return [
        run.name,
        _NONE if n is None else str(n),
        _references(run),
        *(_cell(one, n) for one in rouge),
        make_change_cell(run.metrics, "test/toxicity", n),
        _trainable(run),
        _duration(run.summary.get("seconds")),
        _bytes(run.summary.get("peak_memory_bytes")),
        "; ".join(make_notes(run)),
    ]


def make_notes(run: Run) -> list[str]:
    """What is special about a run."""
    notes = []
    if run.summary.get("method") == "human":
        notes.append("each reference against the others")
    elif not run.has_model:
        notes.append("no model")
    elif (run.summary.get("parameters") or {}).get("trainable") == 0:
        notes.append("no training")
    notes += _shots(run)
    tests = [name for name in run.metrics if name.startswith("test/")]
    if not tests:
        notes.append("not tested")
    elif "test/rouge1" not in run.metrics:
        shown = [f"{name} {run.metrics[name].value:.3f}" for name in tests[:3]]
        notes.append(", ".join(shown))
    return notes


def make_table(runs: Sequence[Run]) -> Table:
    """Lay runs out for a terminal."""
    table = Table(
        title="Comparison", caption=_CAPTION, title_justify="left", caption_justify="left"
    )
    for name in _COLUMNS:
        left = name in ("run", "notes")
        table.add_column(name, justify="left" if left else "right", overflow="fold")
    for run in runs:
        table.add_row(*make_row(run))
    return table


def make_markdown(
    runs: Sequence[Run], reading: Sequence[str], problems: Sequence[str], figure: str | None
) -> str:
    """Write the comparison as a page: table, reading, what could not be read, figure."""
    table = lay_table(_COLUMNS, [make_row(run) for run in runs], left=("run", "notes"))
    parts = ["# Comparison", table, _CAPTION]
    if reading:
        parts.append("## Reading\n\n" + "\n".join(f"- {line}" for line in reading))
    if problems:
        parts.append("## Not shown\n\n" + "\n".join(f"- {problem}" for problem in problems))
    if figure:
        parts.append(f"![ROUGE by run]({figure})")
    return "\n\n".join(parts) + "\n"


def format_estimate(
    estimate: Estimate, sign: bool = False, scale: float = 100, digits: int = 1
) -> str:
    """The value x 100, or another scale, with one decimal or more."""
    return f"{scale * estimate.value:{'+' if sign else ''}z.{digits}f}"


def format_interval(
    estimate: Estimate, sign: bool = False, scale: float = 100, digits: int = 1
) -> str:
    """The interval x 100, or another scale, e.g. "40.1 to 42.0"; empty where there is none."""
    if estimate.low is None or estimate.high is None:
        return ""
    style = f"{'+' if sign or estimate.low < 0 else ''}z.{digits}f"
    return f"{scale * estimate.low:{style}} to {scale * estimate.high:{style}}"


def _cell(estimate: Estimate | None, n: int | None, scale: float = 100, digits: int = 1) -> str:
    """Value, then interval, then n where it is not the row's."""
    if estimate is None:
        return _NONE
    value = format_estimate(estimate, scale=scale, digits=digits)
    interval = format_interval(estimate, scale=scale, digits=digits)
    own = f"n = {estimate.n}" if estimate.n != n else ""
    return "\n".join(part for part in (value, interval, own) if part)


def make_change_cell(
    metrics: Mapping[str, Estimate],
    name: str,
    n: int | None,
    scale: float = 100,
    digits: int = 1,
) -> str:
    """Before → after, and below it the paired change where there is one; else the value alone.

    Args:
        metrics: Holds "<name>", and with two policies "<name>_before" and perhaps "<name>_change".
        name: The metric.
        n: That of the row.
        scale: Factor of the numbers.
        digits: Decimals.
    """
    after, before, change = (metrics.get(name + part) for part in ("", "_before", "_change"))
    if before is None or after is None:
        return _cell(after, n, scale, digits)
    start, end = (format_estimate(one, scale=scale, digits=digits) for one in (before, after))
    if change is None:
        return f"{start} → {end}"
    value = format_estimate(change, sign=True, scale=scale, digits=digits)
    interval = format_interval(change, sign=True, scale=scale, digits=digits)
    return f"{start} → {end}\n{value}" + (f" ({interval})" if interval else "")


def _references(run: Run) -> str:
    if run.references is None:
        return _NONE
    fewest, most = run.references
    return str(most) if fewest == most else f"{fewest} to {most}"


def _shots(run: Run) -> list[str]:
    """How many examples stood before a question, where that is fewer than were asked for."""
    data = (run.summary.get("data") or {}).get("test") or {}
    asked, fitted = data.get("shots_asked", 0), data.get("shots_fitted_mean", 0)
    if fitted >= asked:
        return []
    # Not rounded up: 2.96 of 3 are not all of them.
    return [f"{math.floor(10 * fitted) / 10:.1f} of {asked} examples fit"]


def _trainable(run: Run) -> str:
    counts = run.summary.get("parameters") or {}
    if "trainable" not in counts or not counts.get("total"):
        return _NONE
    share = 100 * counts["trainable"] / counts["total"]
    return f"{counts['trainable']:,}\n{share:.3g} %"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return _NONE
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _bytes(count: int | None) -> str:
    return _NONE if count is None else f"{count / 2**30:.2f} GiB"
