"""Files of JSON lines: read with line numbers, and appended to by one process at a time."""

import fcntl
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

log = logging.getLogger(__name__)

Record = dict[str, Any] | str
"""A line's columns, or what is wrong with the line."""

SHOWN_PROBLEMS = 10
"""Bad rows that a message shows; it counts the others."""


def read_jsonl(path: Path) -> Iterator[tuple[int, Record]]:
    """Read (line number, record) from a file with one JSON object a line; empty lines are left out.

    Bytes that are not UTF-8 become lone surrogates here: who takes a text has to look for them.
    """
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:  # not JSON; numbers, or lists, too long
                yield number, f"broken JSON ({error})"
                continue
            is_object = isinstance(record, dict)
            yield number, record if is_object else "not a JSON object with columns"


def describe_bad_rows(problems: Sequence[str], total: int) -> str:
    """Count bad rows and show the first of them.

    Args:
        problems: What is wrong, at least with the first ``SHOWN_PROBLEMS`` of them.
        total: How many there are.
    """
    shown = "\n".join(f"  {problem}" for problem in problems[:SHOWN_PROBLEMS])
    more = total - SHOWN_PROBLEMS
    return f"{total} bad row(s):\n{shown}" + (f"\n  ... and {more} more" * (more > 0))


def to_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """Turn rows into JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def open_to_append(path: Path) -> BinaryIO:
    """Open a file to append to, which need not exist, and keep every other process from doing so.

    The file is unbuffered, as :func:`append` needs it. The lock goes with the process, however it
    ends.

    Raises:
        ValueError: If another process has it open in this way.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("ab+", buffering=0)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise ValueError(f"{path} is being written by another process") from error
    except OSError as error:  # some network file systems have no locks
        log.warning("%s cannot be locked (%s); start no second process on it", path, error)
    sync(path.parent)
    return file


def append(file: BinaryIO, data: bytes) -> None:
    """Append bytes, and come back when they are on the disk.

    Where that fails, the file is left as it was: what is appended later must not stand behind half
    a line.

    Args:
        file: Opened by :func:`open_to_append`.
        data: Whole lines.

    Raises:
        OSError: If they cannot be written, for example because the disk is full.
    """
    end = os.fstat(file.fileno()).st_size
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[file.write(rest) :]
        os.fsync(file.fileno())
    except BaseException as error:
        if isinstance(error, OSError) and error.filename is None:
            error.filename = file.name
        os.ftruncate(file.fileno(), end)
        raise


def sync(path: Path) -> None:
    """Have the disk hold a file's content, or a folder's names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
