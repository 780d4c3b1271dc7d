"""Read predictions and references from txt, csv and jsonl files, and pair their rows."""

import re
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from datamodules.reading import Row, group, read_records, with_unique_ids

TEXT = "prediction"
"""Name of the only column of a text file."""

_IDS = ("id", "fname")
_REFERENCES = re.compile(r"(summary|reference)\d+")
_NO_PREDICTIONS = re.compile(r"id|fname|dialogue|references?\d*|summary\d+|topic\d*")


class Examples(NamedTuple):
    """Paired rows, all in the order of the predictions.

    Attributes:
        predictions: Texts by column.
        references: At least one text per row.
        dialogues: None if the files have none.
    """

    predictions: dict[str, list[str]]
    references: list[tuple[str, ...]]
    dialogues: list[str] | None


class TextFile(NamedTuple):
    """At least one row of a file, as (line number, cells)."""

    path: Path
    rows: list[tuple[int, dict[str, Any]]]

    @property
    def columns(self) -> list[str]:
        """The columns whose first cell is a text or a list of texts."""
        return [name for name, cell in self.rows[0][1].items() if _to_texts(cell)]

    def texts(self, column: str) -> list[list[str]]:
        """Return the texts of a column, at least one per row.

        Raises:
            ValueError: A cell is missing or holds no text.
        """
        texts = []
        for line, cells in self.rows:
            found, where = _to_texts(cells.get(column)), f"{self.path}, line {line}"
            if not found:
                what = f"is {cells[column]!r:.60}" if column in cells else "is missing"
                raise ValueError(f"{where}: column {column!r} {what}, not a text.")
            try:
                "".join(found).encode()
            except UnicodeEncodeError as error:
                raise ValueError(f"{where}: column {column!r} is not UTF-8 ({error}).") from error
            texts.append(found)
        return texts

    def single(self, column: str) -> list[str]:
        """Return a column with exactly one text per row; errors as for `texts`."""
        texts = self.texts(column)
        for (line, _), found in zip(self.rows, texts, strict=True):
            if len(found) > 1:
                where = f"{self.path}, line {line}"
                raise ValueError(f"{where}: column {column!r} has {len(found)} texts, not one.")
        return [text for (text,) in texts]

    @property
    def dialogues(self) -> list[str] | None:
        """The dialogues; None if the first row has none."""
        return self.single("dialogue") if "dialogue" in self.columns else None

    @property
    def ids(self) -> list[str] | None:
        """The ids, from column `id` or `fname`; None if a row lacks one."""
        for name in _IDS:
            found = [cells.get(name) for _, cells in self.rows]
            if all(identity not in (None, "") for identity in found):
                return [str(identity) for identity in found]
        return None


def read_examples(
    predictions: Path,
    references: Path,
    prediction_columns: Sequence[str] = (),
    reference_columns: Sequence[str] = (),
) -> Examples:
    """Read predictions with their references and, if there are any, dialogues.

    Args:
        predictions: A .jsonl or .csv file, or a text file with one prediction per line.
        references: Likewise; may be the same file.
        prediction_columns: Columns to score; if empty, `prediction` or the only candidate.
        reference_columns: Columns that hold the references of a row; if empty, those that
            DialogSum and our run folders have.

    Raises:
        ValueError: A file cannot be read, a column is missing, or rows do not correspond.
    """
    predicted = read_text_file(predictions)
    same = predictions.resolve() == references.resolve()
    referring = predicted if same else read_text_file(references)
    others = [name for name in predicted.columns if not _NO_PREDICTIONS.fullmatch(name)]
    guesses = [[TEXT] if TEXT in predicted.columns else [], others, predicted.columns]
    names = _choose(predicted, prediction_columns, guesses, "--prediction_columns")
    texts = {name: predicted.single(name) for name in names}
    rows = _read_references(referring, reference_columns, names if same else [])
    if not same:
        rows = _pair(predicted, referring, rows)
    dialogues = [row.dialogue for row in rows] if rows[0].dialogue else None
    return Examples(texts, [row.references for row in rows], dialogues or predicted.dialogues)


def read_text_file(path: Path) -> TextFile:
    """Read a file whose suffix determines its format.

    Raises:
        ValueError: It is missing or empty, or a line is broken.
    """
    if not path.is_file():
        raise ValueError(f"there is no file {path}.")
    rows: list[tuple[int, dict[str, Any]]] = []
    if path.suffix in (".jsonl", ".csv"):
        for line, record in read_records(path):
            if isinstance(record, str):
                raise ValueError(f"{path}, line {line}: {record}.")
            rows.append((line, record))
    elif text := path.read_text(encoding="utf-8-sig", errors="surrogateescape"):
        # An empty line is an empty prediction: dropping it would shift all that follow.
        lines = text.removesuffix("\n").split("\n")
        rows = [(n, {TEXT: line}) for n, line in enumerate(lines, start=1)]
    if not rows:
        raise ValueError(f"{path} is empty.")
    return TextFile(path, rows)


def _to_texts(cell: object) -> list[str]:
    """Return the texts of a cell; none if it is neither a text nor a list of texts."""
    cells = cell if isinstance(cell, list) else [cell]
    texts = [one for one in cells if isinstance(one, str)]
    return texts if len(texts) == len(cells) else []


def _choose(
    file: TextFile, names: Sequence[str], guesses: Sequence[list[str]], option: str
) -> list[str]:
    """Return the named columns, or the first guess that is unambiguous."""
    present = list(dict.fromkeys(name for _, cells in file.rows for name in cells))
    if missing := [name for name in names if name not in present]:
        raise ValueError(
            f"{file.path} has no column {', '.join(missing)}; it has {', '.join(present)}. "
            "Columns are read from .jsonl and .csv files."
        )
    if names:
        return list(dict.fromkeys(names))
    if guess := next((guess for guess in guesses if len(guess) == 1), None):
        return guess
    raise ValueError(
        f"{file.path} has several columns ({', '.join(present)}); choose with {option}."
    )


def _read_references(file: TextFile, names: Sequence[str], taken: Sequence[str]) -> list[Row]:
    """Return each row's id, dialogue (both may be empty) and references."""
    columns = [name for name in file.columns if name not in taken] or file.columns
    numbered = [match for name in columns if (match := _REFERENCES.fullmatch(name))]
    if not names and len({match[1] for match in numbered}) == 1:
        names = [match[0] for match in numbered]
    guesses = [[name] for name in columns if name in ("references", "reference", "summary")]
    guesses += [[name for name in columns if name not in (*_IDS, "dialogue")], columns]
    chosen = _choose(file, names, guesses, "--reference_columns")
    texts = [file.texts(column) for column in chosen]
    ids, dialogues = file.ids, file.dialogues
    rows = []
    for index, (line, _) in enumerate(file.rows):
        references = tuple(chain.from_iterable(column[index] for column in texts))
        if not all(text.strip() for text in references):
            raise ValueError(f"{file.path}, line {line}: a reference is empty.")
        dialogue = dialogues[index] if dialogues else ""
        rows.append(Row(ids[index] if ids else "", dialogue, references))
    return rows


def _pair(predicted: TextFile, referring: TextFile, rows: list[Row]) -> list[Row]:
    """Return a row of references for each prediction, in the order of the predictions.

    Rows that share a dialogue, as in the hub's DialogSum with one row per reference, may count as
    one row with several references.
    """
    forms = [rows, group(rows)] if all(row.dialogue for row in rows) else [rows]
    ids = predicted.ids
    if ids is not None and referring.ids is not None:
        # The k-th of several rows with one id corresponds to the k-th in the other file.
        wanted = [row.id for row in with_unique_ids([Row(name, "", ()) for name in ids])]
        by_form = [{row.id: row for row in with_unique_ids(form)} for form in forms]
        by_id = min(by_form, key=lambda found: len(found.keys() ^ set(wanted)))
        missing, unused = set(wanted) - by_id.keys(), by_id.keys() - set(wanted)
        for file, lacking in ((referring, missing), (predicted, unused)):
            if lacking:
                raise ValueError(
                    f"{file.path} has no row with id {min(lacking)!r} ({len(lacking)} such ids of "
                    "the other file); remove the ids to pair rows by their order."
                )
        return [by_id[name] for name in wanted]
    for form in forms:
        if len(form) == len(predicted.rows):
            _check_dialogues(predicted, referring, form)
            return form
    counts = " or ".join(str(len(form)) for form in forms)
    raise ValueError(
        f"{predicted.path} has {len(predicted.rows)} rows and {referring.path} has {counts}; "
        "rows correspond by their order unless both files have a column of ids."
    )


def _check_dialogues(predicted: TextFile, referring: TextFile, rows: Sequence[Row]) -> None:
    """Refuse rows that were paired by order but have different dialogues."""
    for index, (dialogue, row) in enumerate(zip(predicted.dialogues or [], rows, strict=False)):
        if row.dialogue and row.dialogue.split() != dialogue.split():
            raise ValueError(
                f"{predicted.path}, line {predicted.rows[index][0]}: the dialogue differs from "
                f"that of row {index + 1} of {referring.path}; sort both files alike."
            )
