"""Read what people said of completions: rankings by several annotators, or pairs.

A line is the answer of one annotator on one dialogue, in jsonl or csv:

- a ranking: ``id``, ``dialogue``, ``completions``, and as many ``ranks``: 1 the best, equal ones
  tied, null for a completion that was marked unusable; perhaps ``annotator``. In csv, the lists
  are written as in JSON. With ``skipped`` true it has no ranks.
- a pair: ``prompt``, ``chosen``, ``rejected``; perhaps ``id`` and ``annotator``. The prompt stands
  for the dialogue.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from common.jsonl import Record, read_jsonl
from datamodules.reading import (
    ColumnNames,
    DataError,
    parse_dialogue,
    read_csv,
    take_text,
)

_PROMPT = ColumnNames(dialogue="prompt")
_YES = (True, "1", "true", "True")
_NO = (None, False, "", "0", "false", "False")


class Answer(NamedTuple):
    """What one annotator said of some completions of a dialogue.

    Attributes:
        place: File and line.
        id: Of the dialogue.
        dialogue: Its text.
        completions: Texts, each once.
        ranks: One for each, 1 the best; None where a completion is unusable. Empty where the
            annotator passed the dialogue over.
        annotator: Who it was; None where that is unknown.
    """

    place: str
    id: str
    dialogue: str
    completions: tuple[str, ...]
    ranks: tuple[int | None, ...]
    annotator: str | None = None


class Reading(NamedTuple):
    """The answers of a file, and what is wrong with its other lines."""

    answers: list[Answer]
    problems: list[str]


def read_answers(path: Path) -> Reading:
    """Read a file of answers; a line that is none becomes a problem with its number."""
    answers, problems = [], []
    for number, record in (read_csv if path.suffix == ".csv" else read_jsonl)(path):
        place = f"{path}:{number}"
        try:
            answers.append(parse_answer(record, place))
        except DataError as error:
            problems.append(f"{place}: {error}")
    return Reading(answers, problems)


def parse_answer(record: Record, place: str) -> Answer:
    """Make an answer of a line's columns.

    Raises:
        DataError: If it is none.
    """
    if isinstance(record, str):
        raise DataError(record)
    is_pair = "chosen" in record or "rejected" in record
    identity, dialogue = parse_dialogue(record, "", _PROMPT if is_pair else ColumnNames())
    identity = identity or hashlib.sha256(plain(dialogue).encode()).hexdigest()[:16]
    annotator = record.get("annotator")
    texts, ranks = _take_pair(record) if is_pair else _take_ranking(record)
    return Answer(
        place, identity, dialogue, texts, ranks, None if annotator in (None, "") else str(annotator)
    )


def _take_pair(record: dict[str, Any]) -> tuple[tuple[str, ...], tuple[int | None, ...]]:
    texts = take_text(record, "chosen"), take_text(record, "rejected")
    if texts[0] == texts[1]:
        raise DataError("chosen and rejected are the same text")
    return texts, (1, 2)


def _take_ranking(record: dict[str, Any]) -> tuple[tuple[str, ...], tuple[int | None, ...]]:
    if _is_skipped(record.get("skipped")):
        texts = _take_list(record, "completions") if record.get("completions") else []
        return tuple(dict.fromkeys(map(str, texts))), ()
    completions, ranks = _take_list(record, "completions"), _take_list(record, "ranks")
    if len(completions) != len(ranks):
        raise DataError(f"{len(ranks)} ranks for {len(completions)} completions; one rank for each")
    rank_of: dict[str, int | None] = {}
    for number, (text, rank) in enumerate(zip(completions, ranks, strict=True), start=1):
        if rank is not None and (type(rank) is not int or rank < 1):
            raise DataError(
                f"rank {number} is {rank!r}; a rank is a whole number from 1 on, or null"
            )
        if rank is not None:
            take_text({f"completion {number}": text}, f"completion {number}")
        if rank_of.setdefault(str(text), rank) != rank:
            raise DataError(f"completion {number} stands there before, with another rank")
    return tuple(rank_of), tuple(rank_of.values())


def _take_list(record: dict[str, Any], name: str) -> list[Any]:
    if name not in record:
        raise DataError(f"no column {name!r} (it has {', '.join(map(str, record)) or 'none'})")
    value = record[name]
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise DataError(f"{name} is no list as in JSON ({error})") from None
    if not isinstance(value, list) or not value:
        raise DataError(f"{name} is no list with something in it")
    return value


def _is_skipped(value: Any) -> bool:
    if value in _YES:
        return True
    if value in _NO:
        return False
    raise DataError(f"skipped is {value!r}, neither true nor false")


def plain(dialogue: str) -> str:
    """Give a dialogue with its white space evened out: by it, two are the same or are not."""
    return " ".join(dialogue.split())


def group_by_dialogue(answers: Iterable[Answer]) -> tuple[dict[str, list[Answer]], list[str]]:
    """Put together the answers on one dialogue, whatever ids they call it by.

    Returns:
        The answers by the dialogue's id, the first of several in the alphabet, in the order of the
        ids; and a problem for each answer whose id stands for several dialogues, which are left
        out.
    """
    dialogues: dict[str, set[str]] = defaultdict(set)
    for answer in answers:
        dialogues[answer.id].add(plain(answer.dialogue))
    problems, groups = [], defaultdict(list)
    for answer in answers:
        if (count := len(dialogues[answer.id])) > 1:
            problems.append(f"{answer.place}: id {answer.id!r} stands for {count} dialogues")
        else:
            groups[plain(answer.dialogue)].append(answer)
    by_id = {min(answer.id for answer in group): group for group in groups.values()}
    return {name: by_id[name] for name in sorted(by_id)}, problems


def keep_last(answers: Sequence[Answer]) -> list[Answer]:
    """Drop what was corrected: of a named annotator's answers on the same texts the last counts.

    Args:
        answers: On one dialogue, in the order in which they were given.
    """
    last = {
        (answer.annotator, frozenset(answer.completions)) if answer.annotator else place: answer
        for place, answer in enumerate(answers)
    }
    return list(last.values())
