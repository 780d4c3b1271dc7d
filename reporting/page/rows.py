"""The rows of the page's tables: groups with their runs, and differences to each of them."""

from typing import NamedTuple

from reporting.cells import EMPTY, Cell, Column, choose_columns
from reporting.comparison import COMPARED, LOWER_IS_BETTER, Comparison
from reporting.formats import format_estimate, format_interval, scale_of


class TableRow(NamedTuple):
    """A row of the table: place of the group, whether it is one of its runs, cells by column."""

    place: int
    is_member: bool
    cells: list[tuple[Column, Cell]]


class Difference(NamedTuple):
    """A row of differences: the group, a cell and its class for each metric, the runs behind it."""

    place: int
    label: str
    cells: list[tuple[str, Cell, str]]
    runs: str


def make_rows(comparison: Comparison) -> list[TableRow]:
    """Give a row for each group, and behind one of several runs a row for each of them."""
    columns = choose_columns(comparison)
    rows = []
    for place, group in enumerate(comparison.groups):
        cells = [(column, column.make(comparison, place)) for column in columns]
        rows.append(TableRow(place, False, cells))
        if len(group.runs) > 1:
            for run in group.runs:
                alone = Comparison([run], price_per_hour=comparison.price_per_hour)
                own = [(column, column.make(alone, 0)) for column in columns]
                seed = [
                    (column, Cell(f"seed {run.seed}") if column.key == "runs" else cell)
                    for column, cell in own
                ]
                rows.append(TableRow(place, True, seed))
    return rows


def make_differences(comparison: Comparison) -> dict[int, list[Difference]]:
    """Give for each group that others can be held against the differences to it."""
    tables = {}
    for before in range(len(comparison.groups)):
        rows = [
            _difference(comparison, before, after)
            for after in range(len(comparison.groups))
            if after != before
        ]
        rows = [row for row in rows if any(cell != EMPTY for _, cell, _ in row.cells)]
        if rows:
            tables[before] = rows
    return tables


def _difference(comparison: Comparison, before: int, after: int) -> Difference:
    cells = []
    for metric in COMPARED:
        gap = comparison.difference(before, after, metric)
        if gap is None:
            cells.append((metric, EMPTY, ""))
            continue
        how = scale_of(metric)
        text, interval = format_estimate(gap, True, *how), format_interval(gap, True, *how)
        up = -1 if metric in LOWER_IS_BETTER else 1
        low, high = (0.0, 0.0) if gap.low is None or gap.high is None else (gap.low, gap.high)
        kind = "better" if up * low > 0 and up * high > 0 else ""
        kind = "worse" if up * low < 0 and up * high < 0 else kind
        cell = Cell(text, (interval,) if interval else (), gap.value, gap)
        cells.append((metric, cell, kind))
    group = comparison.groups[after]
    runs = f"{len(group.runs)} against {len(comparison.groups[before].runs)}"
    return Difference(after, group.label, cells, runs)
