"""Bring predictions, references and dialogues together: row by row, by id or by order."""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Literal, NamedTuple

from datamodules.reading import Row, group, with_unique_ids
from reporting.texts import Table, choose_predictions, choose_references, read_table

Match = Literal["id", "order"]


class Inputs(NamedTuple):
    """What to score, and against what.

    Attributes:
        predictions: A .jsonl or .csv file, or text with one prediction a line.
        references: Likewise; may be the same file.
        prediction_columns: Columns of `predictions`, each scored by itself; none named: see
            :func:`reporting.texts.choose_predictions`.
        reference_columns: Columns of `references`, together the references of a row; a jsonl cell
            may hold a list. None named: see :func:`reporting.texts.choose_references`.
        dialogue_column: Column of the dialogues in either file; `dialogue`, if any, where empty.
        match: Pair the rows of two files by id or by order; by id where both have ids if None.
    """

    predictions: Path
    references: Path
    prediction_columns: Sequence[str] = ()
    reference_columns: Sequence[str] = ()
    dialogue_column: str = ""
    match: Match | None = None


class Examples(NamedTuple):
    """What is scored, each attribute in the order of the predictions.

    Attributes:
        ids: Those of the predictions; their line numbers where they have none.
        predictions: By column, a text for each row.
        references: For each row at least one text.
        dialogues: None where the files have none.
    """

    ids: list[str]
    predictions: dict[str, list[str]]
    references: list[tuple[str, ...]]
    dialogues: list[str] | None


def read_examples(inputs: Inputs) -> Examples:
    """Read predictions, and to each its references and its dialogue.

    Raises:
        ValueError: A file cannot be read as what it should be, a column is missing or holds no
            texts, or the rows of the two files do not belong together; names file and line.
    """
    predicted = read_table(inputs.predictions)
    same = inputs.predictions.resolve() == inputs.references.resolve()
    referring = predicted if same else read_table(inputs.references)
    names = choose_predictions(predicted, inputs.prediction_columns)
    predictions = {name: predicted.single_texts(name) for name in names}
    columns = choose_references(referring, inputs.reference_columns, names if same else [])
    own, theirs = (
        _read_dialogues(table, inputs.dialogue_column) for table in (predicted, referring)
    )
    if inputs.dialogue_column and own is theirs is None:
        raise ValueError(
            f"neither {predicted.path} nor {referring.path} has the column of dialogues "
            f"{inputs.dialogue_column!r}."
        )
    rows = _read_references(referring, columns, theirs)
    if not same:
        rows = pair(predicted, own, referring, rows, inputs.match)
    return Examples(
        ids=predicted.ids() or [str(line) for line, _ in predicted.rows],
        predictions=predictions,
        references=[row.references for row in rows],
        dialogues=own if theirs is None else [row.dialogue for row in rows],
    )


def pair(
    predicted: Table,
    dialogues: Sequence[str] | None,
    referring: Table,
    rows: Sequence[Row],
    match: Match | None,
) -> list[Row]:
    """Find the references of each prediction.

    Where rows of references share a dialogue, as in the Hub's DialogSum with a row for each
    reference, they are taken as one row with several references if that is what fits.

    Args:
        predicted: The file of predictions.
        dialogues: Its dialogues; None where it has none.
        referring: The file of references.
        rows: What was read from it; without dialogues and ids these are empty.
        match: See :class:`Inputs`.

    Returns:
        A row of references for each prediction, in the order of the predictions.

    Raises:
        ValueError: The ids are not the same in both files, or the numbers of rows are not, or the
            dialogues of a pair differ.
    """
    grouped = group(rows) if all(row.dialogue for row in rows) else []
    forms = [list(rows), *([grouped] if grouped and len(grouped) < len(rows) else [])]
    ids, other_ids = predicted.ids(), referring.ids()
    if match == "id" and (ids is None or other_ids is None):
        without = predicted.path if ids is None else referring.path
        raise ValueError(f"{without} has no id in every row (column id or fname) to match by.")
    if ids is not None and other_ids is not None and match != "order":
        return _pair_by_id(predicted, ids, referring, forms)
    for form in forms:
        if len(form) == len(predicted.rows):
            _check_dialogues(predicted, dialogues, referring, form)
            return form
    counts = " or ".join(str(len(form)) for form in forms)
    raise ValueError(
        f"{predicted.path} has {len(predicted.rows)} rows and {referring.path} has {counts}: "
        "row i of the one must belong to row i of the other, or both need a column of ids."
    )


def _pair_by_id(
    predicted: Table, ids: Sequence[str], referring: Table, forms: Sequence[Sequence[Row]]
) -> list[Row]:
    """The row of each prediction's id, from the form that has most of these ids."""
    # The k-th of several rows with one id belongs to the k-th with it in the other file.
    wanted = [row.id for row in with_unique_ids([Row(identity, "", ()) for identity in ids])]
    wanted_ids = set(wanted)
    by_form = [{row.id: row for row in with_unique_ids(form)} for form in forms]
    by_id = min(by_form, key=lambda rows: len(rows.keys() ^ wanted_ids))
    missing = [place for place, identity in enumerate(wanted) if identity not in by_id]
    left = [identity for identity in by_id if identity not in wanted_ids]
    if not missing and not left:
        return [by_id[identity] for identity in wanted]
    problems = []
    if missing:
        line, _ = predicted.rows[missing[0]]
        problems.append(
            f"{predicted.path}, line {line}: id {ids[missing[0]]!r} is not in {referring.path}"
            f" ({len(missing)} such rows)"
        )
    if left:
        problems.append(
            f"{referring.path}: id {left[0]!r} has no prediction in {predicted.path}"
            f" ({len(left)} such rows)"
        )
    raise ValueError(
        "; ".join(problems) + ". Give the same rows in both files, or pair them by their order "
        "with --match order."
    )


def _read_dialogues(table: Table, column: str) -> list[str] | None:
    """A table's dialogues; None where it has no such column."""
    name = column or "dialogue"
    return table.single_texts(name) if name in table.columns and not table.is_text else None


def _read_references(
    table: Table, columns: Sequence[str], dialogues: Sequence[str] | None
) -> list[Row]:
    """Each row's id, dialogue and references, empty where there is none of the first two."""
    texts = [table.texts(column) for column in columns]
    ids = table.ids()
    rows = []
    for place, (line, _) in enumerate(table.rows):
        references = tuple(chain.from_iterable(column[place] for column in texts))
        if not all(text.strip() for text in references):
            raise ValueError(f"{table.path}, line {line}: a reference is empty; write one there.")
        rows.append(
            Row(ids[place] if ids else "", dialogues[place] if dialogues else "", references)
        )
    return rows


def _check_dialogues(
    predicted: Table, dialogues: Sequence[str] | None, referring: Table, rows: Sequence[Row]
) -> None:
    """Refuse rows that were paired by order and are of different dialogues."""
    for place, (dialogue, row) in enumerate(zip(dialogues or [], rows, strict=False)):
        if row.dialogue and row.dialogue.split() != dialogue.split():
            raise ValueError(
                f"{predicted.path}, line {predicted.rows[place][0]}: another dialogue than in row "
                f"{place + 1} of {referring.path}; put the rows of both into the same order."
            )
