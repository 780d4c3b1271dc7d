"""The cells of the table of a comparison, with what a page needs to sort and to explain them."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from metrics.intervals import Estimate
from metrics.words import KEYS
from reporting.comparison import Comparison
from reporting.formats import (
    LABELS,
    format_bytes,
    format_count,
    format_dollars,
    format_duration,
    format_estimate,
    format_interval,
    scale_of,
)
from reporting.runs import Run

NONE = "-"


class Cell(NamedTuple):
    """One cell: its text, lines in small print below, what it is sorted by, and its number."""

    text: str
    details: tuple[str, ...] = ()
    sort: float | None = None
    estimate: Estimate | None = None

    @property
    def lines(self) -> str:
        """All of its text."""
        return "\n".join((self.text, *self.details))


class Column(NamedTuple):
    """One column: key, title, which way is better (1 up, -1 down, 0 neither), how a cell is made.

    An optional column is left out where no row has anything in it.
    """

    key: str
    title: str
    better: int
    make: Callable[[Comparison, int], Cell]
    optional: bool = False


EMPTY = Cell(NONE)


def choose_columns(comparison: Comparison) -> list[Column]:
    """List the columns that this comparison has something for."""
    places = range(len(comparison.groups))
    return [
        column
        for column in _COLUMNS
        if not column.optional
        or any(column.make(comparison, p).text not in ("", NONE) for p in places)
    ]


def make_notes(run: Run) -> list[str]:
    """What is special about a run."""
    notes = []
    if run.summary.get("method") == "human":
        notes.append("each reference against the others")
    elif not run.has_model:
        notes.append("no model")
    elif run.trainable == 0:
        notes.append("no training")
    notes += _shots(run)
    tests = [name for name in run.metrics if name.startswith("test/")]
    if not tests:
        notes.append("not tested")
    elif "test/rouge1" not in run.metrics:
        notes.append(", ".join(_in_words(name, run.metrics[name]) for name in tests[:2]))
    return notes


def estimate_cell(
    estimate: Estimate | None, n: int | None = None, scale: float = 100, digits: int = 1
) -> Cell:
    """Value, then interval, then n where it is not the row's."""
    if estimate is None:
        return EMPTY
    own = f"n = {estimate.n}" if estimate.n not in (n, None) else ""
    interval = format_interval(estimate, scale=scale, digits=digits)
    text = format_estimate(estimate, scale=scale, digits=digits)
    return Cell(text, tuple(part for part in (interval, own) if part), estimate.value, estimate)


def make_change_cell(
    metrics: Mapping[str, Estimate | None],
    name: str,
    n: int | None,
    scale: float = 100,
    digits: int = 1,
) -> Cell:
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
        return estimate_cell(after, n, scale, digits)
    start, end = (format_estimate(one, scale=scale, digits=digits) for one in (before, after))
    details: tuple[str, ...] = ()
    if change is not None:
        value = format_estimate(change, sign=True, scale=scale, digits=digits)
        interval = format_interval(change, sign=True, scale=scale, digits=digits)
        details = (f"{value} ({interval})" if interval else value,)
    return Cell(f"{start} → {end}", details, after.value, after)


def find_n(comparison: Comparison, place: int) -> int | None:
    """The number of examples that a row's ROUGE is over."""
    found = [comparison.estimate(place, key) for key in KEYS]
    return next((one.n for one in found if one is not None), None)


def _name(comparison: Comparison, place: int) -> Cell:
    return Cell(comparison.groups[place].label)


def _runs(comparison: Comparison, place: int) -> Cell:
    count = len(comparison.groups[place].runs)
    return EMPTY if count == 1 else Cell(str(count), sort=count)


def _examples(comparison: Comparison, place: int) -> Cell:
    n = find_n(comparison, place)
    return EMPTY if n is None else Cell(str(n), sort=n)


def _references(comparison: Comparison, place: int) -> Cell:
    counts = comparison.groups[place].first.references
    if counts is None:
        return EMPTY
    fewest, most = counts
    return Cell(str(most) if fewest == most else f"{fewest} to {most}", sort=most)


def _metric(key: str) -> Callable[[Comparison, int], Cell]:
    return lambda comparison, place: estimate_cell(
        comparison.estimate(place, key), find_n(comparison, place), *scale_of(key)
    )


def _toxicity(comparison: Comparison, place: int) -> Cell:
    """The mean, or before → after with the paired change."""
    found = {
        "toxicity": comparison.estimate(place, "toxicity"),
        "toxicity_before": comparison.estimate(place, "toxicity_before"),
        "toxicity_change": comparison.change(place, "toxicity"),
    }
    return make_change_cell(found, "toxicity", find_n(comparison, place))


def _kl(comparison: Comparison, place: int) -> Cell:
    estimate = comparison.kl(place)
    cell = estimate_cell(estimate, None, *scale_of("kl"))
    if estimate is None or estimate.n is None:
        return cell
    interval = [line for line in cell.details if not line.startswith("n =")]
    return cell._replace(details=(*interval, f"{estimate.n} batches"))


def _trainable(comparison: Comparison, place: int) -> Cell:
    counts = comparison.groups[place].first.summary.get("parameters") or {}
    if "trainable" not in counts or not counts.get("total"):
        return EMPTY
    share = 100 * counts["trainable"] / counts["total"]
    return Cell(format_count(counts["trainable"]), (f"{share:.3g} %",), counts["trainable"])


def _cost(key: str, style: Callable[[float], str]) -> Callable[[Comparison, int], Cell]:
    def make(comparison: Comparison, place: int) -> Cell:
        values = comparison.cost(place, key)
        if not values:
            return EMPTY
        mean = sum(values) / len(values)
        low, high = style(min(values)), style(max(values))
        return Cell(style(mean), (f"{low} to {high}",) if low != high else (), mean)

    return make


def _notes(comparison: Comparison, place: int) -> Cell:
    return Cell("; ".join(make_notes(comparison.groups[place].first)))


def _in_words(name: str, estimate: Estimate) -> str:
    """A metric that has no column, with its interval where there is one."""
    interval = format_interval(estimate, scale=1, digits=3)
    return f"{name} {estimate.value:.3f}" + (f" ({interval}, n = {estimate.n})" if interval else "")


def _shots(run: Run) -> list[str]:
    """How many examples stood before a question, where that is fewer than were asked for."""
    data = (run.summary.get("data") or {}).get("test") or {}
    asked, fitted = data.get("shots_asked", 0), data.get("shots_fitted_mean", 0)
    if fitted >= asked:
        return []
    # Not rounded up: 2.96 of 3 are not all of them.
    return [f"{math.floor(10 * fitted) / 10:.1f} of {asked} examples fit"]


_COLUMNS: Sequence[Column] = (
    Column("run", "run", 0, _name),
    Column("runs", "seeds", 0, _runs, optional=True),
    Column("n", "n", 0, _examples),
    Column("refs", "refs", 0, _references),
    *(Column(key, label, 1, _metric(key)) for key, label in LABELS.items()),
    Column("toxicity", "toxicity", -1, _toxicity),
    Column("reward", "reward", 1, _metric("reward"), optional=True),
    Column("kl", "KL", -1, _kl, optional=True),
    Column("trainable", "trainable", -1, _trainable),
    Column("seconds", "time", -1, _cost("seconds", format_duration)),
    Column("peak_memory_bytes", "peak memory", -1, _cost("peak_memory_bytes", format_bytes)),
    Column("dollars", "dollars", -1, _cost("dollars", format_dollars), optional=True),
    Column("notes", "notes", 0, _notes, optional=True),
)
