"""What annotators answered, and the file that keeps it.

A line is one answer of one annotator. Nothing is ever changed in the file: who answers again adds a
line, and of the lines of one annotator for one id the last is what they say.
"""

import errno
import json
import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Self

from collecting.samples import take_id, take_text, take_texts
from common.jsonl import append, describe_bad_rows, open_to_append, read_jsonl, sync, to_lines

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """What one annotator says of one dialogue's k completions.

    Args:
        id: Id of the sample.
        dialogue: Its dialogue.
        completions: Its completions; the order of all lists below is theirs.
        annotator: Who says it.
        ranks: 1 the best; equal ranks are ties, None is a completion that cannot be used. None
            in place of them all: the annotator skipped the dialogue.
        toxic: Which completions are toxic.
        sources: Which run each completion is from, where that is known.
        time: When, in ISO 8601.
        seconds: How long the dialogue was looked at, where that is known.

    Raises:
        ValueError: If the lists do not fit together.
    """

    id: str
    dialogue: str
    completions: tuple[str, ...]
    annotator: str
    ranks: tuple[int | None, ...] | None
    toxic: tuple[bool, ...]
    sources: tuple[str, ...] = ()
    time: str = ""
    seconds: float | None = None

    def __post_init__(self) -> None:
        if self.ranks is not None and len(self.ranks) != len(self.completions):
            raise ValueError(f"ranks must be {len(self.completions)}, one a completion")
        if len(self.toxic) != len(self.completions):
            raise ValueError(f"toxic must be {len(self.completions)} marks, one a completion")

    def to_row(self) -> dict[str, Any]:
        """Give the line of the file."""
        judged = {"skipped": True} if self.ranks is None else {"ranks": list(self.ranks)}
        return {
            "id": self.id, "dialogue": self.dialogue, "completions": list(self.completions),
            **judged, "annotator": self.annotator, "toxic": list(self.toxic),
            "sources": list(self.sources), "time": self.time, "seconds": self.seconds,
        }  # fmt: skip


def parse_answer(record: dict[str, Any] | str) -> Answer:
    """Read a line of the file.

    Raises:
        ValueError: If it is no answer.
    """
    if isinstance(record, str):
        raise ValueError(record)
    completions = take_texts(record, "completions")
    skipped = record.get("skipped", False)
    if not isinstance(skipped, bool) or (skipped and "ranks" in record):
        raise ValueError("skipped must be true or false, and true has no ranks")
    return Answer(
        id=take_id(record),
        dialogue=take_text(record, "dialogue"),
        completions=completions,
        annotator=take_text(record, "annotator"),
        ranks=None if skipped else parse_ranks(record.get("ranks")),
        toxic=parse_marks(record.get("toxic", [False] * len(completions))),
        sources=take_texts(record, "sources", ()),
        time=str(record.get("time", "")),
        seconds=parse_seconds(record.get("seconds")),
    )


def parse_ranks(values: Any) -> tuple[int | None, ...]:
    """Take ranks, made dense: 1, 1, 4 becomes 1, 1, 2.

    Raises:
        ValueError: If one is neither None nor a whole number from 1.
    """
    if not isinstance(values, list):
        raise ValueError("ranks must be a list")
    for rank in values:
        if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1):
            raise ValueError(f"a rank must be a whole number from 1, or null; got {rank!r}")
    order = sorted({rank for rank in values if rank is not None})
    dense = {rank: place for place, rank in enumerate(order, start=1)}
    return tuple(dense.get(rank) for rank in values)


def parse_marks(values: Any) -> tuple[bool, ...]:
    """Take marks.

    Raises:
        ValueError: If they are no list of true and false.
    """
    if not isinstance(values, list) or not all(isinstance(mark, bool) for mark in values):
        raise ValueError("toxic must be a list of true and false")
    return tuple(values)


def parse_seconds(value: Any) -> float | None:
    """Take a number of seconds.

    Raises:
        ValueError: If it is none.
    """
    if value is None:
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value < 0:
        raise ValueError(f"seconds must be a number from 0, got {value!r}")
    return round(float(value), 1)


def read_answers(path: Path) -> list[Answer]:
    """Read a file of answers; of one annotator's answers for an id the last.

    Raises:
        ValueError: If there is no such file, or a line of it is no answer; says which and why.
    """
    if not path.is_file():
        raise ValueError(f"answers: there is no file {str(path)!r}")
    answers: dict[tuple[str, str], Answer] = {}
    problems = []
    for number, record in read_jsonl(path):
        try:
            answer = parse_answer(record)
            answers[answer.annotator, answer.id] = answer
        except ValueError as error:
            problems.append(f"{path}:{number}: {error}")
    if problems:
        raise ValueError(f"answers: {describe_bad_rows(problems, len(problems))}")
    return list(answers.values())


class AnswerFile:
    """The answers of all annotators, open for appending by one process at a time.

    Entering it (``with``) opens the file. A crash or a loss of power can only have left an answer
    that nobody was told is saved, as the last line: where it is whole it is kept, else it is set
    aside in ``<name>.torn``.

    Args:
        path: The file; it need not exist.

    Raises:
        ValueError: On entering, if another process writes it, or a line that is not the last one is
            no answer.
    """

    file: BinaryIO

    def __init__(self, path: Path) -> None:
        self.path = path
        self.torn = path.with_name(f"{path.name}.torn")
        self.answers: dict[str, dict[str, Answer]] = {}
        """By annotator and id: the last answers, in the order of the first ones."""

    def __enter__(self) -> Self:
        if self.path.is_dir():
            raise ValueError(f"answers: {self.path} is a folder; name a file in it")
        self.file = open_to_append(self.path)
        try:
            self._mend()
            for answer in read_answers(self.path):
                self._take(answer)
        except BaseException:
            self.file.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def __len__(self) -> int:
        return sum(map(len, self.answers.values()))

    def has(self, answer: Answer) -> bool:
        """Whether the annotator's last answer for this id says the same, whenever it was given."""
        last = self.answers.get(answer.annotator, {}).get(answer.id)
        return last is not None and replace(last, time="", seconds=None) == replace(
            answer, time="", seconds=None
        )

    def append(self, answers: Sequence[Answer]) -> None:
        """Write answers, and come back when they are on the disk.

        Raises:
            OSError: If they cannot be written; the file is as it was.
        """
        self._check_place()
        append(self.file, to_lines(answer.to_row() for answer in answers).encode())
        for answer in answers:
            self._take(answer)

    def _check_place(self) -> None:
        """Refuse to write to a file that nobody would find: some editors put a new one in place."""
        if not self.path.exists() or not os.path.samestat(
            self.path.stat(), os.fstat(self.file.fileno())
        ):
            text = f"{self.path.name} was moved or replaced; start the server again"
            raise OSError(errno.ESTALE, text)

    def _take(self, answer: Answer) -> None:
        self.answers.setdefault(answer.annotator, {})[answer.id] = answer

    def _mend(self) -> None:
        """Set the last line aside where it is not all there."""
        content = self.path.read_bytes()
        whole = content.endswith(b"\n")
        start = content.rfind(b"\n", 0, len(content) - whole) + 1
        last = content[start:]
        if not last.strip() or _is_answer(last):
            if last and not whole:
                append(self.file, b"\n")
            return
        with self.torn.open("ab") as torn:
            torn.write(last if whole else last + b"\n")
        sync(self.torn)
        sync(self.torn.parent)
        self.file.truncate(start)
        log.warning(
            "%s: the last line is not whole; it was never confirmed, and is in %s now",
            self.path, self.torn.name,
        )  # fmt: skip


def _is_answer(line: bytes) -> bool:
    try:
        record = json.loads(line)
        parse_answer(record if isinstance(record, dict) else "no object")
    except (ValueError, RecursionError):
        return False
    return True
