"""What annotators answered, and the file that keeps it.

A line is one answer of one annotator. Nothing is ever changed in the file: who answers again adds a
line, and of the lines of one annotator for one id the last is what they say.
"""

import errno
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, Self

from common.jsonl import append, describe_bad_rows, open_to_append, read_jsonl, sync, to_lines
from datamodules.rankings import Answer, parse_answer

log = logging.getLogger(__name__)


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
            if isinstance(record, str):
                raise ValueError(record)
            answer = parse_answer(record)
            answers[_name(answer), answer.id] = answer
        except ValueError as error:
            problems.append(f"{path}:{number}: {error}")
    if problems:
        raise ValueError(f"answers: {describe_bad_rows(problems, len(problems))}")
    return list(answers.values())


def _name(answer: Answer) -> str:
    """Return the annotator of an answer.

    Raises:
        ValueError: If the answer names none.
    """
    if answer.annotator is None:
        raise ValueError("no annotator")
    return answer.annotator


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
        last = self.answers.get(_name(answer), {}).get(answer.id)
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
        self.answers.setdefault(_name(answer), {})[answer.id] = answer

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
        if not isinstance(record, dict):
            return False
        _name(parse_answer(record))
    except (ValueError, RecursionError):
        return False
    return True
