"""Read predictions and references from txt, csv and jsonl files, and pair their rows."""

import re
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple

from common.jsonl import read_jsonl
from datamodules.reading import Row, group, read_csv, with_unique_ids

Match = Literal["id", "order"]

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
    """Rows of a file as (line number, cells).

    Attributes:
        path: The file.
        rows: At least one.
    """

    path: Path
    rows: list[tuple[int, dict[str, Any]]]

    @property
    def columns(self) -> list[str]:
        """The columns whose first cell is a text or a list of texts."""
        return [name for name, cell in self.rows[0][1].items() if _to_texts(cell)]

    def texts(self, column: str, single: bool = False) -> list[list[str]]:
        """Return the texts of a column, one list per row.

        Raises:
            ValueError: A cell is missing, holds no text, or several where one is expected.
        """
        texts = []
        for line, cells in self.rows:
            found, where = _to_texts(cells.get(column)), f"{self.path}, line {line}"
            if not found:
                what = f"holds {cells[column]!r:.60}" if column in cells else "is missing"
                raise ValueError(f"{where}: column {column!r} {what} instead of a text.")
            if single and len(found) > 1:
                raise ValueError(f"{where}: column {column!r} holds {len(found)} texts, not one.")
            try:
                "".join(found).encode()
            except UnicodeEncodeError as error:
                raise ValueError(f"{where}: column {column!r} is not UTF-8 ({error}).") from error
            texts.append(found)
        return texts

    def column(self, name: str) -> list[str] | None:
        """Return a column with one text per row; None if the first row lacks it."""
        if name not in self.columns:
            return None
        return [text for (text,) in self.texts(name, single=True)]

    def ids(self) -> list[str] | None:
        """Return the ids of the rows, from column `id` or `fname`; None if a row lacks one."""
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
    match: Match | None = None,
) -> Examples:
    """Read predictions with their references and, if there are any, dialogues.

    Args:
        predictions: A .jsonl or .csv file, or a text file with one prediction per line.
        references: Likewise; may be the same file.
        prediction_columns: Columns to score; if empty, `prediction` or the only candidate.
        reference_columns: Columns that hold the references of a row; if empty, those that
            DialogSum and our run folders have.
        match: Pair rows by id or by order; if None, by id if both files have ids.

    Raises:
        ValueError: A file cannot be read, a column is missing, or rows do not correspond.
    """
    predicted = read_text_file(predictions)
    same = predictions.resolve() == references.resolve()
    referring = predicted if same else read_text_file(references)
    names = _choose_predictions(predicted, prediction_columns)
    columns = _choose_references(referring, reference_columns, names if same else [])
    texts = {name: predicted.texts(name, single=True) for name in names}
    rows = _read_references(referring, columns)
    if not same:
        rows = _pair(predicted, referring, rows, match)
    dialogues = [row.dialogue for row in rows] if rows[0].dialogue else None
    return Examples(
        {name: [text for (text,) in column] for name, column in texts.items()},
        [row.references for row in rows],
        dialogues or predicted.column("dialogue"),
    )


def read_text_file(path: Path) -> TextFile:
    """Read a file whose suffix determines its format.

    Raises:
        ValueError: It is missing, empty, not UTF-8, or a line is broken.
    """
    text = _read_utf8(path)
    if not text.strip():
        raise ValueError(f"{path} is empty.")
    suffix = path.suffix.lower()
    if suffix not in (".jsonl", ".json", ".csv"):
        # An empty line is an empty prediction: dropping it would shift all that follow.
        lines = text.removesuffix("\n").split("\n")
        return TextFile(path, [(n, {TEXT: line}) for n, line in enumerate(lines, start=1)])
    rows = []
    for line, record in read_csv(path) if suffix == ".csv" else read_jsonl(path):
        if isinstance(record, str):
            raise ValueError(f"{path}, line {line}: {record}.")
        rows.append((line, record))
    if not rows:
        raise ValueError(f"{path} is empty except for its column names.")
    return TextFile(path, rows)


def _read_utf8(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line} is not UTF-8; save the file as UTF-8.") from error


def _to_texts(cell: object) -> list[str]:
    """Return the texts of a cell; none if it is neither a text nor a list of texts."""
    cells = cell if isinstance(cell, list) else [cell]
    texts = [one for one in cells if isinstance(one, str)]
    return texts if len(texts) == len(cells) else []


def _choose_predictions(file: TextFile, names: Sequence[str]) -> list[str]:
    others = [name for name in file.columns if not _NO_PREDICTIONS.fullmatch(name)]
    named = [TEXT] if TEXT in file.columns else []
    return _choose(file, names, [named, others, file.columns], "--prediction_columns")


def _choose_references(file: TextFile, names: Sequence[str], taken: Sequence[str]) -> list[str]:
    columns = [name for name in file.columns if name not in taken] or file.columns
    numbered = [match for name in columns if (match := _REFERENCES.fullmatch(name))]
    if not names and len({match[1] for match in numbered}) == 1:
        return [match[0] for match in numbered]
    guesses = [[name] for name in columns if name in ("references", "reference", "summary")]
    others = [name for name in columns if name not in (*_IDS, "dialogue")]
    return _choose(file, names, [*guesses, others, columns], "--reference_columns")


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


def _read_references(file: TextFile, columns: Sequence[str]) -> list[Row]:
    """Return each row's id, dialogue (both may be empty) and references."""
    texts = [file.texts(column) for column in columns]
    ids, dialogues = file.ids(), file.column("dialogue")
    rows = []
    for index, (line, _) in enumerate(file.rows):
        references = tuple(chain.from_iterable(column[index] for column in texts))
        if not all(text.strip() for text in references):
            raise ValueError(f"{file.path}, line {line}: a reference is empty.")
        dialogue = dialogues[index] if dialogues else ""
        rows.append(Row(ids[index] if ids else "", dialogue, references))
    return rows


def _pair(
    predicted: TextFile, referring: TextFile, rows: list[Row], match: Match | None
) -> list[Row]:
    """Return a row of references for each prediction, in the order of the predictions.

    Rows that share a dialogue, as in the hub's DialogSum with one row per reference, may count as
    one row with several references.
    """
    grouped = group(rows) if all(row.dialogue for row in rows) else rows
    forms = [rows, grouped] if len(grouped) < len(rows) else [rows]
    ids, other_ids = predicted.ids(), referring.ids()
    if match == "id" and (ids is None or other_ids is None):
        without = predicted.path if ids is None else referring.path
        raise ValueError(f"{without} has no id in every row (column id or fname) to match by.")
    if ids is not None and other_ids is not None and match != "order":
        return _pair_by_id(predicted, ids, referring, forms)
    for form in forms:
        if len(form) == len(predicted.rows):
            _check_dialogues(predicted, referring, form)
            return form
    counts = " or ".join(str(len(form)) for form in forms)
    raise ValueError(
        f"{predicted.path} has {len(predicted.rows)} rows and {referring.path} has {counts}; "
        "rows correspond by their order unless both files have a column of ids."
    )


def _pair_by_id(
    predicted: TextFile, ids: Sequence[str], referring: TextFile, forms: Sequence[list[Row]]
) -> list[Row]:
    """Pair rows by id, using the form of the references that has most of these ids."""
    # The k-th of several rows with one id corresponds to the k-th in the other file.
    wanted = [row.id for row in with_unique_ids([Row(identity, "", ()) for identity in ids])]
    by_form: list[Mapping[str, Row]] = [{r.id: r for r in with_unique_ids(f)} for f in forms]
    by_id = min(by_form, key=lambda found: len(found.keys() ^ set(wanted)))
    missing = [index for index, identity in enumerate(wanted) if identity not in by_id]
    unused = [identity for identity in by_id if identity not in set(wanted)]
    problems = []
    if missing:
        where = f"{predicted.path}, line {predicted.rows[missing[0]][0]}"
        problems.append(
            f"{where}: id {ids[missing[0]]!r} is not in {referring.path} ({len(missing)} such rows)"
        )
    if unused:
        problems.append(
            f"{referring.path}: id {unused[0]!r} has no prediction ({len(unused)} such rows)"
        )
    if problems:
        raise ValueError("; ".join(problems) + ". Use --match order to pair rows by their order.")
    return [by_id[identity] for identity in wanted]


def _check_dialogues(predicted: TextFile, referring: TextFile, rows: Sequence[Row]) -> None:
    """Refuse rows that were paired by order but have different dialogues."""
    for index, (dialogue, row) in enumerate(
        zip(predicted.column("dialogue") or [], rows, strict=False)
    ):
        if row.dialogue and row.dialogue.split() != dialogue.split():
            raise ValueError(
                f"{predicted.path}, line {predicted.rows[index][0]}: the dialogue differs from "
                f"that of row {index + 1} of {referring.path}; sort both files alike."
            )
