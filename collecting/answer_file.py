"""The file of answers: appended to, synced to the disk, never changed.

``datamodules/rankings.py`` defines the format. An annotator who answers again adds a line; of one
annotator's lines for an id, the last one counts.
"""

import errno
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, Self

from common.jsonl import append, open_to_append, sync, to_lines
from datamodules import rankings
from datamodules.rankings import Answer, parse_answer

log = logging.getLogger(__name__)


def read_answers(path: Path) -> list[Answer]:
    """Read the last answer of each annotator for each id.

    Raises:
        ValueError: If the file is missing, or has invalid lines, which are listed.
    """
    if not path.is_file():
        raise ValueError(f"answers: there is no file {str(path)!r}")
    answers = rankings.read_answers(path)
    return list({(answer.annotator, answer.id): answer for answer in answers}.values())


class AnswerFile:
    """The answers of all annotators, open for appending by one process at a time.

    Entering it opens the file. A crash or a power failure can only have damaged the last line,
    which nobody was told is saved: an incomplete last line is moved to ``<name>.torn``.

    Args:
        path: The file; it need not exist.

    Raises:
        ValueError: On entering, if another process writes to the file, or if a line other than the
            last is invalid.
    """

    file: BinaryIO

    def __init__(self, path: Path) -> None:
        self.path = path
        self.torn = path.with_name(f"{path.name}.torn")
        self.answers: dict[str, dict[str, Answer]] = {}
        """The last answers by annotator and id, ordered by the first answers."""

    def __enter__(self) -> Self:
        if self.path.is_dir():
            raise ValueError(f"answers: {self.path} is a folder; name a file in it")
        self.file = open_to_append(self.path)
        try:
            self._repair()
            for answer in read_answers(self.path):
                self._record(answer)
        except BaseException:
            self.file.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def __len__(self) -> int:
        return sum(map(len, self.answers.values()))

    def contains(self, answer: Answer) -> bool:
        """Whether the annotator's last answer for this id is the same, whenever it was given."""
        last = self.answers.get(answer.annotator or "", {}).get(answer.id)
        return last is not None and replace(last, time="", seconds=None) == replace(
            answer, time="", seconds=None
        )

    def append(self, answers: Sequence[Answer]) -> None:
        """Write answers, and return when they are on the disk.

        Raises:
            OSError: If they cannot be written; the file is then unchanged.
        """
        self._check_path()
        append(self.file, to_lines(answer.to_row() for answer in answers).encode())
        for answer in answers:
            self._record(answer)

    def _check_path(self) -> None:
        """Refuse to write to a file that nobody would find: editors put a new one in place."""
        if not self.path.exists() or not os.path.samestat(
            self.path.stat(), os.fstat(self.file.fileno())
        ):
            text = f"{self.path.name} was moved or replaced; restart the server"
            raise OSError(errno.ESTALE, text)

    def _record(self, answer: Answer) -> None:
        self.answers.setdefault(answer.annotator or "", {})[answer.id] = answer

    def _repair(self) -> None:
        """Complete a last line that lacks only its line break, or move it out of the file."""
        content = self.path.read_bytes()
        ended = content.endswith(b"\n")
        start = content.rfind(b"\n", 0, len(content) - ended) + 1
        last = content[start:]
        if not last.strip() or _is_answer(last):
            if last and not ended:
                append(self.file, b"\n")
            return
        with self.torn.open("ab") as torn:
            torn.write(last if ended else last + b"\n")
        sync(self.torn)
        sync(self.torn.parent)
        self.file.truncate(start)
        log.warning(
            "%s: the last line is incomplete. It was never confirmed, and is now in %s",
            self.path, self.torn.name,
        )  # fmt: skip


def _is_answer(line: bytes) -> bool:
    try:
        parse_answer(json.loads(line))
    except (ValueError, TypeError, AttributeError, RecursionError):
        return False
    return True
