"""Build the tables of a comparison, for the terminal, Markdown and the page."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from metrics.intervals import Estimate
from metrics.toxicity import TOXIC_ABOVE
from reporting.comparison import COMPARED, LOWER_IS_BETTER, Comparison
from reporting.numbers import (
    RAW,
    ROUGE_LABELS,
    Unit,
    format_both,
    format_bytes,
    format_duration,
    format_interval,
    format_value,
    is_clear,
    unit_of,
)
from reporting.seeds import KINDS


class Cell(NamedTuple):
    """One cell: text, lines in small print below it, sort key, its number, CSS class."""

    text: str
    details: tuple[str, ...] = ()
    sort: float | None = None
    estimate: Estimate | None = None
    kind: str = ""

    @property
    def lines(self) -> str:
        """The text and its details, a line each."""
        return "\n".join((self.text, *self.details))


EMPTY = Cell("-")
_CHOOSING = KINDS.index("reward models")
MakeCell = Callable[[Comparison, int], Cell]


class Column(NamedTuple):
    """One column: key, title, direction that is better (1, -1 or 0), and how to make a cell."""

    key: str
    title: str
    better: int
    make: MakeCell


class TableRow(NamedTuple):
    """A row: index of its group, name, whether it is a single run of a group, and its cells."""

    group: int
    name: str
    is_member: bool
    cells: list[Cell]


class Table(NamedTuple):
    """Columns and rows; every row has a cell for each column, the first of which is its name."""

    columns: list[Column]
    rows: list[TableRow]

    @property
    def texts(self) -> list[list[str]]:
        """Titles, then the text of each group's cells."""
        rows = [row.cells for row in self.rows if not row.is_member]
        lines = [[name.text, *(cell.lines for cell in cells)] for name, *cells in rows]
        return [[column.title for column in self.columns], *lines]

    @property
    def texts_with_notes(self) -> list[list[str]]:
        """The same, with notes as the last column."""
        notes = ["; ".join(row.cells[0].details) for row in self.rows if not row.is_member]
        return [[*row, note] for row, note in zip(self.texts, ["notes", *notes], strict=True)]

    def keep(self, wanted: Callable[[int], bool]) -> "Table":
        """Return the table with the wanted columns, by their positions."""
        kept = [i for i in range(len(self.columns)) if wanted(i)]
        rows = [row._replace(cells=[row.cells[i] for i in kept]) for row in self.rows]
        return Table([self.columns[i] for i in kept], rows)

    def narrowed(self, width: int) -> "Table":
        """Drop the least important columns until the table fits into `width` characters."""
        table = self
        for key in ("reward", "rougeLsum", "peak_memory_bytes", "n", "rouge2", "kl", "rougeL"):
            columns = zip(*table.texts, strict=True)
            sizes = [max(len(line) for text in c for line in text.split("\n")) for c in columns]
            if sum(sizes) + 2 * len(sizes) <= width:
                break
            keys = [column.key for column in table.columns]
            table = table.keep(lambda i, keys=keys, key=key: keys[i] != key)  # type: ignore[misc]
        return table


def make_results(comparison: Comparison) -> Table:
    """Tabulate the results of the tested groups except reward models and classifiers."""
    tested = [
        index
        for index, group in enumerate(comparison.groups)
        if group.kind != _CHOOSING and any(n.startswith("test/") for n in group.first.metrics)
    ]
    return _make_table(comparison, _COLUMNS, tested)


def make_other_results(comparison: Comparison) -> Table:
    """Tabulate the results of reward models and classifiers, which have no ROUGE."""
    names: dict[str, None] = {}
    others = [i for i, group in enumerate(comparison.groups) if group.kind == _CHOOSING]
    for index in others:
        names |= dict.fromkeys(comparison.groups[index].first.metrics)
    tests = [name.removeprefix("test/") for name in names if name.startswith("test/")]
    columns = []
    for name in tests:
        if not name[-1].isdigit():  # e.g. accuracy_distance_2
            lower = name in ("loss", "ece")
            title = name.replace("_", " ") + (" ↓" if lower else "")
            columns.append(Column(name, title, -1 if lower else 1, _metric(name, Unit(1, 3))))
    return _make_table(comparison, [_COLUMNS[0], *columns, *_COSTS], others)


def make_toxicity(comparison: Comparison) -> Table:
    """Tabulate toxicity and reward; with their changes where texts from before were tested."""
    titles = {
        "toxicity": "toxicity", "toxicity_std": "standard deviation",
        "toxic_share": f"over {TOXIC_ABOVE}", "reward": "reward",
    }  # fmt: skip
    columns = [Column(key, title, -1, _change_of(key)) for key, title in titles.items()]
    everyone = range(len(comparison.groups))
    return _make_table(comparison, [*_COLUMNS[:2], *columns], everyone, members=False)


def make_frontier(comparison: Comparison) -> Table:
    """Tabulate changes from before alignment to after it, and what they cost."""
    titles = {"toxicity": "toxicity ↓", "rouge1": "ROUGE-1", "evaluator": "evaluator"}
    columns = [Column(key, title, 0, _change_of(key)) for key, title in titles.items()]
    everyone = range(len(comparison.groups))
    return _make_table(comparison, [_COLUMNS[0], *columns, _KL, *_COSTS], everyone, members=False)


def make_differences(comparison: Comparison, before: int) -> Table:
    """Tabulate the paired differences of all groups to one of them."""

    def make_gap(metric: str, better: int) -> MakeCell:
        def make(comparison: Comparison, index: int) -> Cell:
            gap = comparison.difference(before, index, metric)
            if gap is None:
                return EMPTY
            kind = ""
            if is_clear(gap):
                kind = "better" if gap.value * better > 0 else "worse"
                kind += " up" if gap.value > 0 else " down"
            return _estimate_cell(gap, unit_of(metric), sign=True)._replace(kind=kind)

        return make

    columns = [_COLUMNS[0]]
    for metric in COMPARED:
        better = -1 if metric in LOWER_IS_BETTER else 1
        label = ROUGE_LABELS.get(metric, metric) + (" ↓" if better < 0 else "")
        columns.append(Column(metric, label, better, make_gap(metric, better)))
    found = _make_table(comparison, columns, range(len(comparison.groups)), members=False)
    rows = [row for row in found.rows if any(cell.estimate for cell in row.cells)]
    return Table(found.columns, rows)


def describe_results(comparison: Comparison) -> str:
    """Describe the numbers of the results table."""
    several = any(len(group.runs) > 1 for group in comparison.groups)
    seeds = " Rows of several runs: mean over seeds, interval over seeds and dialogues."
    return (
        "ROUGE F1 (mean over a dialogue's references) and toxicity x 100 on the test split, with "
        "95 % bootstrap intervals over the dialogues. Reward: raw logit. KL: to the reference at "
        "the end of PPO, in nats per sequence. Time: of the training, or of the test if nothing is "
        "trained. Memory: peak of the GPU's tensors, or of the process on a CPU." + seeds * several
    )


def _make_table(
    comparison: Comparison, columns: Sequence[Column], indices: Sequence[int], members: bool = True
) -> Table:
    """Make all cells, and drop the columns that are empty."""
    rows = []
    for index in indices:
        group = comparison.groups[index]
        rows.append(
            TableRow(index, group.label, False, [c.make(comparison, index) for c in columns])
        )
        for run in group.runs if members and len(group.runs) > 1 else ():
            alone = Comparison([run])
            rows.append(TableRow(index, run.name, True, [c.make(alone, 0) for c in columns]))
    table = Table(list(columns), rows)
    return table.keep(lambda i: any(row.cells[i].text != "-" for row in rows))


def _estimate_cell(estimate: Estimate | None, unit: Unit, sign: bool = False) -> Cell:
    if estimate is None:
        return EMPTY
    interval = format_interval(estimate, unit, sign)
    details = (interval,) if interval else ()
    return Cell(format_value(estimate, unit, sign), details, estimate.value, estimate)


def _metric(key: str, unit: Unit | None = None) -> MakeCell:
    return lambda comparison, index: _estimate_cell(
        comparison.estimate(index, key), unit or unit_of(key)
    )


def _change_of(key: str) -> MakeCell:
    """Return how to make a cell "before → after" with the paired change, or just the value."""
    unit = unit_of(key)

    def make(comparison: Comparison, index: int) -> Cell:
        after, before = (comparison.estimate(index, f"{key}{end}") for end in ("", "_before"))
        if before is None or after is None:
            return _estimate_cell(after, unit)
        text = f"{format_value(before, unit)} → {format_value(after, unit)}"
        change = comparison.change(index, key)
        details = (format_both(change, unit, sign=True),) if change else ()
        return Cell(text, details, after.value, after)

    return make


def _name(comparison: Comparison, index: int) -> Cell:
    """Name a group, with its kind, whether it is the best and what is special about it."""
    group = comparison.groups[index]
    notes = [] if group.kind == _CHOOSING else [KINDS[group.kind]]
    is_best = index in comparison.leaders and len(comparison.ranked) > 1
    if is_best:
        notes.append("best" if len(comparison.leaders) == 1 else "tied for best")
    if group.first.method == "human":
        notes.append("each reference against the others")
    data = (group.first.summary.get("data") or {}).get("test") or {}
    wanted, fitted = data.get("shots_asked", 0), data.get("shots_fitted_mean", 0)
    if fitted < wanted:  # rounded down: 2.96 of 3 are not all of them
        notes.append(f"{math.floor(10 * fitted) / 10:.1f} of {wanted} examples fit")
    return Cell(group.label, tuple(filter(None, ["; ".join(notes)])), kind="winner" * is_best)


def _examples(comparison: Comparison, index: int) -> Cell:
    found = [comparison.estimate(index, key) for key in COMPARED]
    n = next((one.n for one in found if one is not None), None)
    return EMPTY if n is None else Cell(str(n), sort=n)


def _trainable(comparison: Comparison, index: int) -> Cell:
    counts = comparison.groups[index].first.summary.get("parameters") or {}
    if "trainable" not in counts or not counts.get("total"):
        return EMPTY
    share = 100 * counts["trainable"] / counts["total"]
    return Cell(f"{counts['trainable']:,.0f}", (f"{share:.3g} %",), counts["trainable"])


def _cost(key: str, style: Callable[[float], str]) -> MakeCell:
    def make(comparison: Comparison, index: int) -> Cell:
        values = comparison.cost(index, key)
        if not values:
            return EMPTY
        mean = sum(values) / len(values)
        return Cell(style(mean), sort=mean)

    return make


_COSTS = (
    Column("trainable", "trained weights", -1, _trainable),
    Column("seconds", "time", -1, _cost("seconds", format_duration)),
    Column("peak_memory_bytes", "memory", -1, _cost("peak_memory_bytes", format_bytes)),
)
_KL = Column("kl", "KL ↓", -1, lambda c, index: _estimate_cell(c.kl(index), RAW))
_COLUMNS = (
    Column("run", "run", 0, _name),
    Column("n", "n", 0, _examples),
    *(Column(key, label, 1, _metric(key)) for key, label in ROUGE_LABELS.items()),
    Column("toxicity", "toxicity ↓", -1, _change_of("toxicity")),
    Column("reward", "reward", 1, _metric("reward")),
    _KL,
    *_COSTS,
)
