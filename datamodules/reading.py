"""Parse dialogues and references from JSON lines and CSV, and report bad rows.

Both forms of DialogSum are read: one line per reference (a test dialogue then occurs several
times, see :func:`group`), and one line per dialogue with ``summary1``, ``summary2``, ...
"""

import csv
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, TypeVar

from common.jsonl import Record, describe_bad_rows, read_jsonl

logger = logging.getLogger(__name__)

Split = Literal["train", "validation", "test"]
OnBadRow = Literal["stop", "skip"]
T = TypeVar("T")

csv.field_size_limit(2**31 - 1)  # Python's default limits a cell to 128 KiB


class DataError(ValueError):
    """Data that cannot be used; the message says where, why, and how to fix it."""


class MissingColumnError(DataError):
    """A record lacks columns."""

    def __init__(self, columns: Sequence[str], record: Mapping[str, Any]) -> None:
        self.columns = columns
        names = " and no column ".join(map(repr, columns))
        super().__init__(f"no column {names} (it has {', '.join(map(str, record)) or 'none'})")


class Row(NamedTuple):
    """A dialogue and its reference summaries."""

    id: str
    dialogue: str
    references: tuple[str, ...]


@dataclass(frozen=True)
class ColumnNames:
    """The names of a source's columns.

    Args:
        id: Row id. If missing, DialogSum's ``fname`` is used, then the row number.
        dialogue: The text to summarize.
        summary: The reference, or the stem of several: ``summary1``, ``summary2``, ...
    """

    id: str = "id"
    dialogue: str = "dialogue"
    summary: str = "summary"


# Records ------------------------------------------------------------------------------------------


def read_records(path: Path) -> Iterator[tuple[int, Record]]:
    """Read (line number, record) from a JSON lines or CSV file."""
    return read_csv(path) if path.suffix == ".csv" else read_jsonl(path)


def read_csv(path: Path) -> Iterator[tuple[int, Record]]:
    """Read (first line number, record) from a CSV file; cells may contain line breaks."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, strict=True)
        header: list[str] | None = None
        while True:
            number = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield number, f"broken CSV ({error})"
                continue
            if header is None:
                header = cells
                other = next((sign for sign in ";\t|" if sign in "".join(cells)), None)
                if other and len(cells) == 1:
                    yield number, f"cells are separated by {other!r}; save the file with commas"
                    return
            elif len(cells) == len(header):
                yield number, dict(zip(header, cells, strict=True))
            elif cells:
                yield number, f"{len(cells)} cells where the header has {len(header)}"


def parse_records(
    records: Iterable[tuple[int, Record]],
    where: str,
    parse: Callable[[Mapping[str, Any]], T],
    on_bad_row: OnBadRow = "stop",
    column_options: Mapping[str, str] = MappingProxyType({}),
    remedy: str = "Correct them, or skip them with --data.on_bad_row skip",
) -> list[T]:
    """Parse the records of a file; one error reports everything that is wrong with them.

    Args:
        records: Line numbers and records.
        where: The file, for messages.
        parse: Parses a record; raises `DataError`.
        on_bad_row: Stop at unusable records, or skip and count them.
        column_options: The option that renames each column, by the column's current name.
        remedy: What to do about bad records.

    Raises:
        DataError: If a record is bad and ``on_bad_row`` is "stop", or if none can be parsed and a
            column is missing.
    """
    parsed: list[T] = []
    problems: list[str] = []
    missing: MissingColumnError | None = None
    for number, record in records:
        try:
            if isinstance(record, str):
                raise DataError(record)
            parsed.append(parse(record))
        except DataError as error:
            problems.append(f"{where}:{number}: {error}")
            if isinstance(error, MissingColumnError):
                missing = missing or error
    if missing and not parsed:
        options = [column_options[name] for name in missing.columns if name in column_options]
        hint = "; name your column with " + " and ".join(f"{option} NAME" for option in options)
        raise DataError(f"data: {where} has {missing}" + hint * bool(options))
    if problems:
        found = describe_bad_rows(problems)
        if on_bad_row == "stop":
            raise DataError(f"data: {found}\n{remedy}")
        logger.warning("Skipped %s", found)
    return parsed


def take_text(record: Mapping[str, Any], name: str) -> str:
    """Return the text in a column.

    Raises:
        DataError: If it is missing, empty, not a text, or not UTF-8.
    """
    require_columns(record, name)
    value = record[name]
    if not isinstance(value, str):
        raise DataError(f"{name} is {type(value).__name__}, not text")
    if not value.strip():
        raise DataError(f"{name} is empty")
    _check_encoding(value, name)
    return value


def require_columns(record: Mapping[str, Any], *names: str) -> None:
    """Raise an error if a record lacks a column.

    Raises:
        MissingColumnError: With all missing columns.
    """
    if missing := [name for name in names if name not in record]:
        raise MissingColumnError(missing, record)


def _check_encoding(value: str, name: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{name} is not UTF-8 (character {error.start})") from None


# Rows ---------------------------------------------------------------------------------------------


def parse_rows(
    records: Iterable[tuple[int, Record]],
    where: str,
    columns: ColumnNames,
    on_bad_row: OnBadRow = "stop",
    needs_summary: bool = True,
    prefix: str = "",
    option: str = "--data.columns.{}",
    **settings: Any,
) -> list[Row]:
    """Turn records into rows; see :func:`parse_records`.

    Args:
        records: Line numbers and records.
        where: The file, for messages.
        columns: Names of the columns.
        on_bad_row: Stop at unusable rows, or skip and count them.
        needs_summary: Whether each row must have references; otherwise empty cells are left out.
        prefix: What comes before the row number in the id of a row without one.
        option: The option that renames a column.
        **settings: Further arguments of :func:`parse_records`.

    Raises:
        DataError: As for :func:`parse_records`, or if no usable row is left.
    """

    def parse(record: Mapping[str, Any]) -> Row:
        names = _find_summaries(record, columns)
        if needs_summary:
            names = names or [columns.summary]
            require_columns(record, columns.dialogue, *names)
        else:
            names = [name for name in names if record[name] not in (None, "")]
        references = tuple(take_text(record, name) for name in names)
        return Row(*parse_dialogue(record, columns), references)

    options = {
        columns.dialogue: option.format("dialogue"), columns.summary: option.format("summary")
    }  # fmt: skip
    rows = parse_records(records, where, parse, on_bad_row, options, **settings)
    if not rows:
        raise DataError(f"data: {where} has no usable row")
    return [row if row.id else row._replace(id=f"{prefix}{i}") for i, row in enumerate(rows)]


def parse_dialogue(record: Mapping[str, Any], columns: ColumnNames) -> tuple[str, str]:
    """Return the id ("" if it has none) and the dialogue of a record.

    Raises:
        DataError: If the dialogue is missing, empty or not a text, or one of the two is not UTF-8.
    """
    name = next((name for name in (columns.id, "fname") if name in record), None)
    identity = "" if name is None or record[name] is None else str(record[name])
    _check_encoding(identity, "the id")
    return identity, take_text(record, columns.dialogue)


def _find_summaries(record: Mapping[str, Any], columns: ColumnNames) -> list[str]:
    """Return the names of the reference columns, in numerical order."""
    if columns.summary in record:
        return [columns.summary]
    numbered = re.compile(re.escape(columns.summary) + r"(\d+)")
    found = [match for name in record if (match := numbered.fullmatch(name or ""))]
    return [match[0] for match in sorted(found, key=lambda match: int(match[1]))]


def normalize_whitespace(dialogue: str) -> str:
    """Collapse white space: dialogues that are equal afterwards count as the same."""
    return " ".join(dialogue.split())


def group(rows: Sequence[Row]) -> list[Row]:
    """Merge rows with the same dialogue into one row with several references.

    ``test_0_1``, ``test_0_2`` and ``test_0_3`` become ``test_0``; if the ids have no such common
    stem, the first id is used. Rows are in the order of their first occurrence.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.dialogue, []).append(row)
    grouped = []
    for dialogue, members in groups.items():
        # test_0_1 is a reference of test_0; dev_0 is not a reference of "dev".
        stems = {re.sub(r"(?<=_)(\d+)_\d+$", r"\1", row.id) for row in members}
        shared = len(members) > 1 and len(stems) == 1
        references = tuple(text for row in members for text in row.references)
        grouped.append(Row(stems.pop() if shared else members[0].id, dialogue, references))
    return grouped


def with_unique_ids(rows: Sequence[Row]) -> list[Row]:
    """Number repeated ids: ``a``, ``a#2``, ``a#3``."""
    seen: Counter[str] = Counter()
    taken = {row.id for row in rows}
    unique = []
    for row in rows:
        seen[row.id] += 1
        name = row.id
        while seen[row.id] > 1 and (name := f"{row.id}#{seen[row.id]}") in taken:
            seen[row.id] += 1
        taken.add(name)
        unique.append(row._replace(id=name))
    return unique
