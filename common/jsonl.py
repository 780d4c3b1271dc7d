"""Read JSON lines with line numbers; append to a file from one process at a time."""

import fcntl
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

log = logging.getLogger(__name__)

Record = dict[str, Any] | str
"""A line's columns, or a description of what is wrong with it."""

SHOWN_PROBLEMS = 3
"""Number of bad rows that a message shows; the others are counted."""


def read_jsonl(path: Path) -> Iterator[tuple[int, Record]]:
    """Yield (line number, record) for each line with a JSON object; skip empty lines.

    Bytes that are not UTF-8 become lone surrogates, which callers have to look for in texts.
    """
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (
                ValueError,
                RecursionError,
            ) as error:  # not JSON, or nested too deeply
                yield number, f"broken JSON ({error})"
                continue
            is_object = isinstance(record, dict)
            yield number, record if is_object else "not a JSON object with columns"


def describe_bad_rows(problems: Sequence[str]) -> str:
    """Count bad rows and show the first ``SHOWN_PROBLEMS`` of their descriptions."""
    shown = "\n".join(f"  {problem}" for problem in problems[:SHOWN_PROBLEMS])
    more = len(problems) - SHOWN_PROBLEMS
    return f"{len(problems)} bad row(s):\n{shown}" + f"\n  ... and {more} more" * (more > 0)


def to_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return rows as JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def open_to_append(path: Path) -> BinaryIO:
    """Open or create a file to append to, and lock it against other processes.

    The file is unbuffered, as :func:`append` requires. The lock ends with the process.

    Raises:
        ValueError: If another process has the lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("ab+", buffering=0)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise ValueError(f"{path} is being written by another process") from error
    except OSError as error:  # some network file systems have no locks
        log.warning("%s cannot be locked (%s); write to it from one process only", path, error)
    sync(path.parent)
    return file


def append(file: BinaryIO, data: bytes) -> None:
    """Append complete lines and sync them to disk; restore the file if that fails.

    Args:
        file: Opened by :func:`open_to_append`.
        data: Complete lines.

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
    """Sync a file's content, or a folder's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
