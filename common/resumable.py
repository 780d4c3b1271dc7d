"""An output file of JSON lines that an interrupted command continues.

`<output>.settings.json` beside the file records what decides its lines, so that lines of different
settings are never mixed. Lines are only appended, so a killed process leaves complete lines and at
most one incomplete line at the end, which is removed.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from common.jsonl import append, open_to_append, to_lines
from common.run_folder import write_text

T = TypeVar("T")

REMEDY = "name another --output, or replace it with --overwrite true"


def count_done(output: Path, identity: Mapping[str, Any], overwrite: bool = False) -> int:
    """Return how many complete lines an output already has; changes nothing.

    Args:
        output: The file; it need not exist.
        identity: What decides its lines, in JSON types.
        overwrite: Start over, whatever the file holds.

    Raises:
        ValueError: If something else wrote the file.
    """
    about = _settings_file(output)
    identity = json.loads(json.dumps(identity))
    if overwrite or not output.exists() or output.stat().st_size == 0:
        return 0
    if not about.exists():
        raise ValueError(f"{output} exists, and no {about.name} says what wrote it; {REMEDY}")
    before = json.loads(about.read_text(encoding="utf-8"))
    changed = [name for name in before | identity if before.get(name) != identity.get(name)]
    if changed:
        changes = (f"{n} was {before.get(n)!r} and is {identity.get(n)!r}" for n in changed)
        raise ValueError(
            f"{output} was written with other settings: {'; '.join(changes)}; {REMEDY}"
        )
    with output.open("rb") as file:
        return sum(line.endswith(b"\n") for line in file)


def write_windows(
    output: Path,
    identity: Mapping[str, Any],
    done: int,
    rows: Sequence[T],
    size: int,
    make_lines: Callable[[Sequence[T], int], Sequence[Mapping[str, Any]]],
) -> Iterator[int]:
    """Write a line for each row, window by window, and yield the number of rows that are done.

    Windows begin at the same rows after an interruption, so that sampled lines are the same.

    Args:
        output: The file.
        identity: What decides its lines, in JSON types.
        done: Number of lines that it has; see :func:`count_done`.
        rows: All rows.
        size: Rows in a window.
        make_lines: Returns the lines of a window, given its rows and the number of the first.

    Raises:
        ValueError: If another process writes the file.
    """
    with _open_output(output, identity, done) as file:
        for start in range(done - done % size, len(rows), size):
            window = rows[start : start + size]
            lines = make_lines(window, start)
            append(file, to_lines(lines[max(0, done - start) :]).encode())
            yield start + len(window)


@contextmanager
def _open_output(output: Path, identity: Mapping[str, Any], done: int) -> Iterator[BinaryIO]:
    """Open an output for :func:`append`, after its first ``done`` lines."""
    with open_to_append(output) as file:
        file.seek(0)
        file.truncate(sum(len(file.readline()) for _ in range(done)))
        # Written after the lines of other settings are gone, and before the first of these.
        write_text(_settings_file(output), json.dumps(identity, indent=1) + "\n")
        yield file


def _settings_file(output: Path) -> Path:
    return output.with_name(f"{output.name}.settings.json")
