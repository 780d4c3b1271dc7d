"""A file of JSON lines that grows window by window and is gone on with after an interruption.

Beside ``summaries.jsonl`` lies ``summaries.jsonl.settings.json``: all that decides the texts, in
hashes where it is long. It is there before the first line is, so that lines without it, or with
another one, are somebody else's. A killed run leaves complete lines and at most one half line, for
lines are only ever appended; that half line is cut off when the run goes on.
"""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Self, TextIO

from common.jsonl import append, open_to_append, to_lines
from common.run_folder import write_text
from datamodules.reading import Row

log = logging.getLogger(__name__)

_REMEDY = "name another --output, or start it anew by --overwrite true"


class SummaryStream:
    """Lines to standard output or a pipe, which cannot be gone on with.

    Args:
        file: Where they go.
    """

    def __init__(self, file: TextIO) -> None:
        self.file = file
        self.rows = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.flush()

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write rows."""
        self.file.write(to_lines(rows))
        self.file.flush()
        self.rows += len(rows)


class SummaryFile:
    """A file of JSON lines, open for appending by one process at a time.

    Building it compares settings and changes nothing; entering it (``with``) opens it.

    Args:
        path: The file.
        settings: What decides its lines, in JSON's types; a file of other settings is refused.
        about: What else is to be kept beside it; not compared.
        overwrite: Start anew whatever is there.
        column: What every line has beside its id.

    Raises:
        ValueError: If the file was made with other settings or by another program, or has a line
            that is broken, the last one excepted; on entering, if another process writes it.
    """

    file: BinaryIO

    def __init__(
        self,
        path: Path,
        settings: Mapping[str, Any],
        about: Mapping[str, Any],
        overwrite: bool = False,
        column: str = "prediction",
    ) -> None:
        self.path = path
        self.sidecar = path.with_name(f"{path.name}.settings.json")
        self.settings: dict[str, Any] = json.loads(_to_json(settings))
        self.about = about
        self.overwrite = overwrite
        self.column = column
        self.rows = self._find_rows()[0]

    def __enter__(self) -> Self:
        self.file = open_to_append(self.path)
        try:
            self.rows, end = self._find_rows()  # another process may have been here meanwhile
            if self.path.stat().st_size > end:
                if not self.overwrite:
                    log.warning("%s: cut off a last line that was written by half", self.path)
                self.file.truncate(end)
            # Not before the lines of other settings are gone.
            write_text(self.sidecar, _to_json({"settings": self.settings, "about": self.about}))
        except BaseException:
            self.file.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write rows, and come back when they are on the disk."""
        append(self.file, to_lines(rows).encode())
        self.rows += len(rows)

    def check(self, rows: Iterable[Row]) -> None:
        """Compare the ids of the lines with those of the input.

        Raises:
            ValueError: If a line is of another row, or there are more lines than rows.
        """
        source = iter(rows)
        with self.path.open("rb") as file:
            for number, line in zip(range(1, self.rows + 1), file, strict=False):
                found, row = json.loads(line)["id"], next(source, None)
                if row is not None and found == row.id:
                    continue
                there = "the input has no more rows" if row is None else f"the input has {row.id!r}"
                raise ValueError(f"{self.path}:{number} is of row {found!r}, {there}; {_REMEDY}")

    def _find_rows(self) -> tuple[int, int]:
        """Count the lines to go on after, and the bytes up to their end."""
        if self.overwrite or not self.path.exists() or self.path.stat().st_size == 0:
            return 0, 0
        self._check_settings()
        return count_rows(self.path, self.column)

    def _check_settings(self) -> None:
        if not self.sidecar.exists():
            raise ValueError(
                f"{self.path} is there already, and no {self.sidecar.name} that says what made it; "
                f"{_REMEDY}"
            )
        try:
            known = json.loads(self.sidecar.read_text(encoding="utf-8"))["settings"]
            names = list(known | self.settings)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.sidecar} is broken ({error}); {_REMEDY}") from error
        changes = [
            f"{name} was {known.get(name)!r} and is {self.settings.get(name)!r}"
            for name in names
            if known.get(name) != self.settings.get(name)
        ]
        if changes:
            raise ValueError(
                f"{self.path} was made with other settings: {'; '.join(changes)}. To keep it, name "
                "another --output; to replace it, --overwrite true"
            )


def count_rows(path: Path, column: str) -> tuple[int, int]:
    """Count the complete lines of a file, and the bytes up to their end.

    Raises:
        ValueError: If a line has no id or not the column, unless it is the last and cut short.
    """
    rows = end = 0
    half: int | None = None
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            content = _parse(line)
            if half is None and content is None:
                half = number
            elif half is None and isinstance(content, dict) and {"id", column} <= set(content):
                rows, end = rows + 1, end + len(line)
            else:
                raise ValueError(
                    f"{path}:{half or number} is no line with id and {column}; {_REMEDY}"
                )
    return rows, end


def _parse(line: bytes) -> Any:
    """Parse a line; None where it is not all there."""
    if not line.endswith(b"\n"):
        return None
    try:
        return json.loads(line)
    except ValueError:
        return None


def _to_json(fields: Mapping[str, Any]) -> str:
    return json.dumps(fields, indent=2, ensure_ascii=False) + "\n"
