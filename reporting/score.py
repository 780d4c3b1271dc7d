"""Score prediction files against reference files: the work of `report.py score`."""

import csv
import io
import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from metrics.intervals import Estimate, bootstrap_mean
from metrics.rouge import BEST, Rouge

Columns = dict[str | None, list[list[str]]]
"""Texts by column name, a list for each row; a text file has one column without a name."""


def score_files(
    predictions: Path,
    references: Path,
    prediction_columns: Sequence[str] = (),
    reference_columns: Sequence[str] = (),
    stemmer: bool = True,
) -> dict[str, dict[str, Estimate]]:
    """Score each prediction column against all reference columns.

    Args:
        predictions: A .jsonl or .csv file, or text with one prediction a line.
        references: Likewise; may be the same file.
        prediction_columns: Columns of `predictions`; needed unless it is text or has one column.
        reference_columns: Columns of `references`, several for several references per example. In
            jsonl a column may also hold a list of references.
        stemmer: Compare Porter stems instead of words.

    Returns:
        For each prediction column ("prediction" where it has no name) ROUGE by key with n and
        interval; with several reference columns each is the mean over them, and "<key>_best" the
        best of them.

    Raises:
        ValueError: A file cannot be read as what it should be, or the two do not fit each other.
    """
    predicted = select_columns(predictions, read_columns(predictions), prediction_columns)
    reference = select_columns(references, read_columns(references), reference_columns)
    rows = len(next(iter(reference.values())))
    per_row = [list(chain.from_iterable(texts)) for texts in zip(*reference.values(), strict=True)]
    several = any(len(texts) > 1 for texts in per_row)
    scores = {}
    for name, texts in predicted.items():
        if len(texts) != rows:
            raise ValueError(
                f"{predictions} has {len(texts)} rows and {references} has {rows}: "
                "row i of the one must belong to row i of the other."
            )
        if any(len(row) != 1 for row in texts):
            raise ValueError(f"{predictions}: column {name} holds lists; a prediction is one text.")
        rouge = Rouge(stemmer)
        rouge.update([row[0] for row in texts], per_row)
        scores[name or "prediction"] = {
            key: bootstrap_mean(values.tolist())
            for key, values in rouge.per_example().items()
            if several or BEST not in key
        }
    return scores


def read_columns(path: Path) -> Columns:
    """Read a file's texts by column; the ending decides the format.

    Raises:
        ValueError: It is missing, empty, not UTF-8, or a row is broken; names file and line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{path}, line {line} is not UTF-8 (byte {error.start}); save the file as UTF-8."
        ) from error
    if not text.strip():
        raise ValueError(f"{path} is empty; there is nothing to score.")
    ending = path.suffix.lower()
    if ending in (".jsonl", ".json"):
        return _read_jsonl(path, text)
    if ending == ".csv":
        return _read_csv(path, text)
    # An empty line is an empty text, not a missing one: leaving it out would shift all that follow.
    return {None: [[line] for line in text.removesuffix("\n").split("\n")]}


def select_columns(path: Path, columns: Columns, names: Sequence[str]) -> Columns:
    """Take the named columns, or the only one where none is named.

    Raises:
        ValueError: A column is missing, or none is named and there are several.
    """
    present = ", ".join(str(name) for name in columns if name is not None)
    if not names:
        if len(columns) == 1:
            return columns
        raise ValueError(f"{path} has several columns ({present}); name those to be scored.")
    if None in columns:
        raise ValueError(
            f"{path} is read as text, one example a line, and has no columns; name none, or give a "
            ".jsonl or .csv file."
        )
    missing = [name for name in names if name not in columns]
    if missing:
        raise ValueError(
            f"{path} has no column {', '.join(missing)}; it has {present}"
            " (a column counts where every row has a text in it)."
        )
    return {name: columns[name] for name in names}


def _read_jsonl(path: Path, text: str) -> Columns:
    """Columns that every line has."""
    rows: list[dict[str, object]] = []
    # Not splitlines: it also breaks at U+2028 and others that may stand inside a JSON string.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is not JSON: {error}.") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number} is not a JSON object but {line[:40]!r}.")
        rows.append(row)
    return _to_columns(rows)


def _read_csv(path: Path, text: str) -> Columns:
    """Columns by the names in the first line."""
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    rows: list[dict[str, object]] = []
    try:
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(
                    f"{path}, line {reader.line_num} does not have as many cells as the first line."
                )
            rows.append(dict(row))
    except csv.Error as error:
        raise ValueError(f"{path}, after line {reader.line_num}: not csv, {error}.") from error
    if not rows:
        raise ValueError(f"{path} is empty but for its column names; there is nothing to score.")
    return _to_columns(rows)


def _to_columns(rows: Sequence[dict[str, object]]) -> Columns:
    """Keep the columns that hold a text, or a list of texts, in every row."""
    columns: Columns = {}
    for name in rows[0]:
        texts = [_to_texts(row.get(name)) for row in rows]
        if all(texts):
            columns[name] = texts
    return columns


def _to_texts(cell: object) -> list[str]:
    """A cell's texts; none where it is neither a text nor a list of texts."""
    cells = cell if isinstance(cell, list) else [cell]
    texts = [one for one in cells if isinstance(one, str)]
    return texts if len(texts) == len(cells) else []
