"""Read files of texts for `report.py score`: text, jsonl or csv, and the columns that are meant."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from common.jsonl import Record, read_jsonl
from datamodules.reading import read_csv

TEXT = "prediction"
"""What the one column of a text file is called."""

_IDS = ("id", "fname")
_REFERENCES = re.compile(r"(summary|reference)\d+")
_NO_PREDICTIONS = re.compile(r"id|fname|dialogue|references?\d*|summary\d+|topic\d*")


class Table(NamedTuple):
    """A file's rows.

    Attributes:
        path: The file.
        rows: Line number and cells of each row.
        is_text: Whether it has no columns but one text a line.
    """

    path: Path
    rows: list[tuple[int, dict[str, Any]]]
    is_text: bool

    @property
    def columns(self) -> list[str]:
        """The columns that hold a text, or a list of texts, in the first row."""
        return [name for name, cell in self.rows[0][1].items() if _to_texts(cell)]

    def texts(self, column: str) -> list[list[str]]:
        """Take a column's texts, a list for each row.

        Raises:
            ValueError: A cell is missing, or holds neither a text nor a list of texts.
        """
        texts = []
        for line, cells in self.rows:
            found = _to_texts(cells.get(column))
            if not found:
                what = f"holds {cells[column]!r:.60}" if column in cells else "is missing"
                raise ValueError(
                    f"{self.path}, line {line}: column {column!r} {what}; "
                    "a text or a list of texts belongs there."
                )
            try:
                "".join(found).encode()
            except UnicodeEncodeError as error:
                raise ValueError(
                    f"{self.path}, line {line}: column {column!r} is not UTF-8, {error}."
                ) from error
            texts.append(found)
        return texts

    def single_texts(self, column: str) -> list[str]:
        """Take a column with one text in each row.

        Raises:
            ValueError: As for :meth:`texts`, or a cell holds several texts.
        """
        texts = self.texts(column)
        for (line, _), found in zip(self.rows, texts, strict=True):
            if len(found) > 1:
                raise ValueError(
                    f"{self.path}, line {line}: column {column!r} holds {len(found)} texts; "
                    "one is wanted."
                )
        return [found[0] for found in texts]

    def ids(self) -> list[str] | None:
        """Take the rows' ids, from a column `id` or `fname`; None where a row has none."""
        for name in _IDS:
            found = [cells.get(name) for _, cells in self.rows]
            if all(identity not in (None, "") for identity in found):
                return [str(identity) for identity in found]
        return None


def read_table(path: Path) -> Table:
    """Read a file; its ending decides the format.

    Raises:
        ValueError: It is missing, empty, not UTF-8, or a line is broken; names file and line.
    """
    text = _read_text(path)
    if not text.strip():
        raise ValueError(f"{path} is empty; there is nothing to score.")
    ending = path.suffix.lower()
    if ending not in (".jsonl", ".json", ".csv"):
        # An empty line is an empty text, not a missing one: without it all that follow would shift.
        lines = text.removesuffix("\n").split("\n")
        rows = [(number, {TEXT: line}) for number, line in enumerate(lines, start=1)]
        return Table(path, rows, is_text=True)
    records = read_csv(path) if ending == ".csv" else read_jsonl(path)
    rows = list(_check(path, records))
    if not rows:
        raise ValueError(f"{path} is empty but for its column names; there is nothing to score.")
    return Table(path, rows, is_text=False)


def choose_predictions(table: Table, names: Sequence[str]) -> list[str]:
    """Choose the columns to score: those named, or `prediction`, or the only one it can be.

    Raises:
        ValueError: A named column is missing, or none is named and it can be several.
    """
    others = [name for name in table.columns if not _NO_PREDICTIONS.fullmatch(name)]
    named = [TEXT] if TEXT in table.columns else []
    return _choose(table, names, [named, others, table.columns], "--prediction_columns")


def choose_references(table: Table, names: Sequence[str], taken: Sequence[str]) -> list[str]:
    """Choose the columns of references: those named, or those that DialogSum and our runs have.

    Args:
        table: The file.
        names: Those asked for.
        taken: Columns that are predictions.

    Raises:
        ValueError: A named column is missing, or none is named and it can be several.
    """
    columns = [name for name in table.columns if name not in taken] or table.columns
    found = [match for name in columns if (match := _REFERENCES.fullmatch(name))]
    if not names and len({match[1] for match in found}) == 1:
        return [match[0] for match in found]
    usual = [[name] for name in ("references", "reference", "summary") if name in columns]
    others = [name for name in columns if name not in (*_IDS, "dialogue")]
    return _choose(table, names, [*usual, others, columns], "--reference_columns")


def _choose(
    table: Table, names: Sequence[str], guesses: Sequence[Sequence[str]], option: str
) -> list[str]:
    """The named columns, or the first guess that is a single one."""
    if names and table.is_text:
        raise ValueError(
            f"{table.path} is read as text, one example a line, and has no columns; leave out "
            f"{option}, or give a .jsonl or .csv file."
        )
    present = list(dict.fromkeys(name for _, cells in table.rows for name in cells))
    if missing := [name for name in names if name not in present]:
        raise ValueError(
            f"{table.path} has no column {', '.join(missing)}; it has {', '.join(present)}."
        )
    if names:
        return list(dict.fromkeys(names))
    for guess in guesses:
        if len(guess) == 1:
            return list(guess)
    raise ValueError(
        f"{table.path} has several columns ({', '.join(present)}); name those that are meant with "
        f"{option}."
    )


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{path}, line {line} is not UTF-8 (byte {error.start}); save the file as UTF-8."
        ) from error


def _check(
    path: Path, records: Iterator[tuple[int, Record]]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Pass on what is well, and refuse a broken line."""
    for line, record in records:
        if isinstance(record, str):
            raise ValueError(f"{path}, line {line}: {record}.")
        yield line, record


def _to_texts(cell: object) -> list[str]:
    """A cell's texts; none where it is neither a text nor a list of texts."""
    cells = cell if isinstance(cell, list) else [cell]
    texts = [one for one in cells if isinstance(one, str)]
    return texts if len(texts) == len(cells) else []
