"""Some rows of a batch, whatever the batch is made of."""

from itertools import accumulate
from typing import Any

PER_COMPLETION = ("inputs", "responses", "mask", "owner")
"""What a batch with pairs has for each completion, several of which belong to a row."""

PER_PAIR = ("pairs", "distances", "weights")


def take_rows(batch: Any, start: int, stop: int) -> Any:
    """Take the rows of a batch from ``start`` to before ``stop``, as wide as they were.

    A row is one id; in batches of preferences it comes with its completions and their pairs.
    """
    if "pairs" not in batch:
        return {name: _cut(column, start, stop) for name, column in batch.items()}
    first, behind = (_completions_before(batch, row) for row in (start, stop))
    own = (batch["pairs"][:, 0] >= first) & (batch["pairs"][:, 0] < behind)
    rows = {}
    for name, column in batch.items():
        if name in PER_COMPLETION:
            rows[name] = _cut(column, first, behind)
        elif name in PER_PAIR:
            rows[name] = column[own]
        else:
            rows[name] = column[start:stop]
    rows["pairs"] = rows["pairs"] - first
    if "owner" in rows:
        rows["owner"] = rows["owner"] - start
    return rows


def _cut(column: Any, start: int, stop: int) -> Any:
    if isinstance(column, dict):
        return {name: _cut(each, start, stop) for name, each in column.items()}
    return column[start:stop]


def _completions_before(batch: Any, row: int) -> int:
    if "owner" in batch:
        return int((batch["owner"] < row).sum())
    sizes = [len(ranking.completions) for ranking in batch["rankings"]]
    return [0, *accumulate(sizes)][row]
