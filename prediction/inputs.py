"""Dialogues from a file of any size, one after the other."""

import hashlib
import itertools
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from common.jsonl import SHOWN_PROBLEMS, Record, describe_bad_rows, read_jsonl
from common.run_folder import expand
from datamodules.reading import (
    ColumnNames,
    DataError,
    OnBadRow,
    Row,
    parse_dialogue,
    parse_known_references,
    read_csv,
)

log = logging.getLogger(__name__)

Format = Literal["auto", "jsonl", "csv", "text", "lines"]

_ENDINGS: dict[str, Format] = {
    ".jsonl": "jsonl", ".json": "jsonl", ".csv": "csv", ".txt": "text", ".text": "text",
}  # fmt: skip

_STDIN = Path("/dev/stdin")


class Contents(NamedTuple):
    """What a file holds: the number of its dialogues, and a hash of them and their ids."""

    rows: int
    digest: str


@dataclass
class BadRows:
    """Counts bad rows and keeps the first of them for the message."""

    total: int = 0
    shown: list[str] = field(default_factory=list)

    def add(self, problem: str) -> None:
        """Count one more."""
        self.total += 1
        if self.total <= SHOWN_PROBLEMS:
            self.shown.append(problem)

    def __str__(self) -> str:
        return describe_bad_rows(self.shown, self.total)


@dataclass(frozen=True)
class DialogueFile:
    r"""A file of dialogues.

    A row's id is its id column, DialogSum's ``fname`` where that is missing, else its number in the
    file, from 0, bad rows counted. Rows stay as they are: two of one id or dialogue are two rows.

    Args:
        name: The file; ``-`` is standard input.
        format: ``jsonl``, ``csv``; ``text``, dialogues with blank lines between them; ``lines``,
            one dialogue a line, in which the two characters ``\n`` stand for a line break;
            ``auto`` goes by the ending.
        columns: Names of the columns of jsonl and csv.
        on_bad_row: Stop at rows that cannot be used, or skip and count them.
        with_references: Read the references of the rows that have any.

    Raises:
        DataError: If there is no such file, or its ending does not say what it is.
    """

    name: str
    format: Format = "auto"
    columns: ColumnNames = ColumnNames()  # noqa: RUF009 - frozen
    on_bad_row: OnBadRow = "stop"
    with_references: bool = False

    def __post_init__(self) -> None:
        if not self.path.exists() or self.path.is_dir():
            raise DataError(f"input: there is no file {self.name!r}")
        if self.format == "auto" and self.name != "-" and self.path.suffix.lower() not in _ENDINGS:
            raise DataError(
                f"input: the ending of {self.name!r} does not say what it is "
                f"({', '.join(_ENDINGS)} would); name it: --format jsonl, csv, text or lines"
            )

    @property
    def path(self) -> Path:
        """Where it is read from."""
        return _STDIN if self.name == "-" else expand(self.name)

    @property
    def can_be_read_twice(self) -> bool:
        """Whether it is a regular file, and no pipe."""
        return self.path.is_file()

    def scan(self) -> Contents:
        """Read the file through once, and say everything that is wrong with it.

        Raises:
            DataError: If a row is bad and ``on_bad_row`` is "stop", or there is no good one.
        """
        rows, digest, bad = 0, hashlib.sha256(), BadRows()
        for row in self._parse():
            if isinstance(row, str):
                bad.add(row)
                continue
            rows += 1
            digest.update(json.dumps([row.id, row.dialogue]).encode())
        self._judge(bad, rows)
        if bad.total:
            log.warning("Skipped %s", bad)
        return Contents(rows, digest.hexdigest())

    def read(self) -> Iterator[Row]:
        """Give the good rows; no more of the file is held in memory than the row at hand.

        What is skipped is only said of a file that cannot be scanned before.

        Raises:
            DataError: At a bad row where ``on_bad_row`` is "stop", at the end where none was good.
        """
        rows, bad = 0, BadRows()
        for row in self._parse():
            if not isinstance(row, str):
                rows += 1
                yield row
                continue
            bad.add(row)
            if self.on_bad_row == "stop":
                break
        self._judge(bad, rows)
        if bad.total and not self.can_be_read_twice:
            log.warning("Skipped %s", bad)

    def _judge(self, bad: BadRows, good: int) -> None:
        if bad.total and self.on_bad_row == "stop":
            raise DataError(f"input: {bad}\nMend them, or leave them out with --on_bad_row skip")
        if not good:
            raise DataError(f"input: {self.name} has no dialogue")

    def _parse(self) -> Iterator[Row | str]:
        """Give a row for each record, or what is wrong with it and where."""
        for place, (number, record) in enumerate(self._records()):
            try:
                if isinstance(record, str):
                    raise DataError(record)
                identity, dialogue = parse_dialogue(record, str(place), self.columns)
                known = self.with_references
                references = parse_known_references(record, self.columns) if known else ()
            except DataError as error:
                yield f"{self.name}:{number}: {error}"
            else:
                yield Row(identity, dialogue, references)

    def _records(self) -> Iterator[tuple[int, Record]]:
        kind = self.format
        if kind == "auto":
            kind = "jsonl" if self.name == "-" else _ENDINGS[self.path.suffix.lower()]
        if kind == "jsonl":
            return read_jsonl(self.path)
        if kind == "csv":
            return read_csv(self.path)
        texts = read_blocks(self.path) if kind == "text" else read_lines(self.path)
        return ((number, {self.columns.dialogue: text}) for number, text in texts)


def read_blocks(path: Path) -> Iterator[tuple[int, str]]:
    """Read (number of the first line, text) of the blocks between blank lines."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        numbered = enumerate(file, start=1)
        for blank, lines in itertools.groupby(numbered, lambda pair: not pair[1].strip()):
            if not blank:
                number, first = next(lines)
                yield number, (first + "".join(line for _, line in lines)).rstrip("\n")


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    r"""Read (line number, text) of each line, ``\n`` written out being a line break in the text."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, line in enumerate(file, start=1):
            yield number, line.rstrip("\n").replace("\\n", "\n")
