"""Read rows of dialogues and references from jsonl and csv files, and say what is wrong with them.

Both forms of DialogSum are read: one line per reference (a test dialogue then stands several
times, see :func:`group`), and one line per dialogue with ``summary1``, ``summary2``, ...
"""

import csv
import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from common.jsonl import Record, describe_bad_rows

logger = logging.getLogger(__name__)

Split = Literal["train", "validation", "test"]
OnBadRow = Literal["stop", "skip"]

csv.field_size_limit(2**31 - 1)  # Python's own limit of 128 KiB a cell is not ours


class DataError(ValueError):
    """The data cannot be used as they are; the message says where and how to mend it."""


class Row(NamedTuple):
    """A dialogue and its reference summaries."""

    id: str
    dialogue: str
    references: tuple[str, ...]


@dataclass(frozen=True)
class ColumnNames:
    """What the columns of a source are called.

    Args:
        id: Row id; DialogSum's ``fname`` is taken where it is missing, then the row's number.
        dialogue: The text to summarise.
        summary: The reference; or the stem of several, ``summary1``, ``summary2``, ...
    """

    id: str = "id"
    dialogue: str = "dialogue"
    summary: str = "summary"


def read_csv(path: Path) -> Iterator[tuple[int, Record]]:
    """Read (line number on which it begins, record); cells may hold newlines."""
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
            elif not cells:
                continue
            elif len(cells) != len(header):
                yield number, f"{len(cells)} cells where the header has {len(header)}"
            else:
                yield number, dict(zip(header, cells, strict=True))


def parse(
    records: Iterator[tuple[int, Record]],
    split: Split,
    where: str,
    columns: ColumnNames,
    on_bad_row: OnBadRow,
) -> list[Row]:
    """Turn records into rows, and all that is wrong with them into one error.

    Raises:
        DataError: If a row is bad and ``on_bad_row`` is "stop", or if there is no good row.
    """
    rows: list[Row] = []
    problems: list[str] = []
    for number, record in records:
        try:
            rows.append(_parse_record(record, f"{split}_{len(rows)}", columns))
        except DataError as error:
            problems.append(f"{where}:{number}: {error}")
    refuse_bad_rows(problems, on_bad_row)
    if not rows:
        raise DataError(f"data: the {split} split is empty: {where} has no usable row")
    return rows


def refuse_bad_rows(problems: Sequence[str], on_bad_row: OnBadRow, hint: str = "") -> None:
    """Stop because of all bad rows at once, or warn of them.

    Args:
        problems: What is wrong with each.
        on_bad_row: Whether to stop.
        hint: What a good row looks like.

    Raises:
        DataError: If there is a bad row and ``on_bad_row`` is "stop".
    """
    if not problems:
        return
    found = describe_bad_rows(problems, len(problems))
    if on_bad_row == "stop":
        raise DataError(
            f"data: {found}\nMend them, or leave them out with --data.on_bad_row skip"
            + (f". {hint}" if hint else "")
        )
    logger.warning("Skipped %s", found)


def parse_dialogue(
    record: dict[str, Any], default_id: str, columns: ColumnNames
) -> tuple[str, str]:
    """Take id and dialogue from the columns of a line.

    Raises:
        DataError: If the dialogue is missing, empty or no text, or one of the two is not UTF-8.
    """
    name = next((name for name in (columns.id, "fname") if name in record), None)
    identity = default_id if name is None or record[name] in (None, "") else str(record[name])
    _check_encoding(identity, "the id")
    return identity, take_text(record, columns.dialogue)


def _parse_record(record: Record, default_id: str, columns: ColumnNames) -> Row:
    if isinstance(record, str):
        raise DataError(record)
    identity, dialogue = parse_dialogue(record, default_id, columns)
    names = _find_summaries(record, columns) or [columns.summary]
    return Row(identity, dialogue, tuple(take_text(record, name) for name in names))


def parse_known_references(record: dict[str, Any], columns: ColumnNames) -> tuple[str, ...]:
    """Take the references of a line that need not have any; empty cells are none.

    Raises:
        DataError: If one is no text, or not UTF-8.
    """
    names = _find_summaries(record, columns)
    return tuple(take_text(record, name) for name in names if record[name] not in (None, ""))


def _find_summaries(record: dict[str, Any], columns: ColumnNames) -> list[str]:
    """Find the columns of the references, in their order."""
    if columns.summary in record:
        return [columns.summary]
    numbered = re.compile(re.escape(columns.summary) + r"(\d+)")
    found = [match for name in record if (match := numbered.fullmatch(name or ""))]
    return [match[0] for match in sorted(found, key=lambda match: int(match[1]))]


def take_text(record: dict[str, Any], name: str) -> str:
    """Take a text from a column of a line.

    Raises:
        DataError: If it is missing, empty, no text, or not UTF-8.
    """
    if name not in record:
        raise DataError(f"no column {name!r} (it has {', '.join(map(str, record)) or 'none'})")
    value = record[name]
    if not isinstance(value, str):
        raise DataError(f"{name} is {type(value).__name__}, not text")
    if not value.strip():
        raise DataError(f"{name} is empty")
    _check_encoding(value, name)
    return value


def _check_encoding(value: str, name: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{name} is not UTF-8 (character {error.start})") from None


def group(rows: Sequence[Row]) -> list[Row]:
    """Make one row with several references of the rows that have the same dialogue.

    ``test_0_1``, ``test_0_2`` and ``test_0_3`` become ``test_0``; where the ids share no such stem
    the first is taken. The order is that of the first appearance.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.dialogue, []).append(row)
    grouped = []
    for dialogue, members in groups.items():
        # test_0_1 is a reference of test_0; dev_0 is no reference of "dev".
        stems = {re.sub(r"(?<=_)(\d+)_\d+$", r"\1", row.id) for row in members}
        shared = len(members) > 1 and len(stems) == 1
        references = tuple(text for row in members for text in row.references)
        grouped.append(Row(stems.pop() if shared else members[0].id, dialogue, references))
    return grouped


def with_unique_ids(rows: Sequence[Row]) -> list[Row]:
    """Give every further row of an id a number of its own: ``a``, ``a#2``, ``a#3``."""
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
