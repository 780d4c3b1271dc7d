"""The file format of human judgements: rankings, or preference pairs.

A line is one annotator's answer on one dialogue, in JSON lines or CSV:

- a ranking: ``id``, ``dialogue``, ``completions`` and as many ``ranks`` (1 is best, equal ranks are
  ties, null marks an unusable completion), optionally ``annotator``, ``toxic`` (one boolean per
  completion), ``sources``, ``time`` and ``seconds``. In CSV, lists are written as JSON. A line with
  ``"skipped": true`` needs no ranks.
- a pair: ``prompt``, ``chosen``, ``rejected``, optionally ``id`` and ``annotator``. The prompt is
  used as the dialogue.

The ranking page writes this format (``collecting``), reward models and DPO read it.
"""

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from datamodules.reading import (
    ColumnNames,
    DataError,
    MissingColumnError,
    normalize_whitespace,
    parse_dialogue,
    parse_records,
    read_records,
    take_text,
)

_PAIR_COLUMNS = ColumnNames(dialogue="prompt")
_TRUE = (True, "1", "true", "True")
_FALSE = (None, False, "", "0", "false", "False")


@dataclass(frozen=True)
class Answer:
    """One annotator's judgement of the k completions of a dialogue.

    Args:
        id: Id of the dialogue.
        dialogue: Its text.
        completions: The texts; all lists below are in their order.
        annotator: Name of the annotator; None if unknown.
        ranks: 1 is best, equal ranks are ties, None marks an unusable completion. None instead of
            the tuple means that the annotator skipped the dialogue.
        toxic: Which completions are toxic; empty if that was not asked.
        sources: The run that each completion comes from; empty if unknown.
        time: When the answer was given, in ISO 8601.
        seconds: How long the dialogue was on the screen; None if unknown.
        place: File and line, for error messages.

    Raises:
        DataError: If the lists differ in length.
    """

    id: str
    dialogue: str
    completions: tuple[str, ...]
    annotator: str | None
    ranks: tuple[int | None, ...] | None
    toxic: tuple[bool, ...] = ()
    sources: tuple[str, ...] = ()
    time: str = ""
    seconds: float | None = None
    place: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        count = len(self.completions)
        if self.ranks is not None and len(self.ranks) != count:
            raise DataError(f"ranks must be {count}, one per completion, got {len(self.ranks)}")
        if self.toxic and len(self.toxic) != count:
            raise DataError(f"toxic must be {count} marks, one per completion")

    def to_row(self) -> dict[str, Any]:
        """Return the answer as a line of the file."""
        judgement = {"skipped": True} if self.ranks is None else {"ranks": list(self.ranks)}
        return {
            "id": self.id, "dialogue": self.dialogue, "completions": list(self.completions),
            **judgement, "annotator": self.annotator, "toxic": list(self.toxic),
            "sources": list(self.sources), "time": self.time, "seconds": self.seconds,
        }  # fmt: skip


class ParsedAnswers(NamedTuple):
    """The answers of a file, and one message for each line that is not an answer."""

    answers: list[Answer]
    problems: list[str]


def read_answers(path: Path) -> ParsedAnswers:
    """Read a file of answers, collecting the lines that are not answers as problems."""
    return ParsedAnswers(
        *parse_records(
            read_records(path),
            str(path),
            lambda record, number: parse_answer(record, f"{path}:{number}"),
            column_options={},
        )
    )


def parse_answer(record: Mapping[str, Any], place: str = "") -> Answer:
    """Parse one line.

    Args:
        record: Its columns.
        place: File and line, kept for later messages.

    Raises:
        DataError: If the line is not an answer.
    """
    is_pair = "chosen" in record or "rejected" in record
    name, dialogue = parse_dialogue(record, "", _PAIR_COLUMNS if is_pair else ColumnNames())
    name = name or hashlib.sha256(normalize_whitespace(dialogue).encode()).hexdigest()[:16]
    completions, ranks = _parse_pair(record) if is_pair else _parse_ranking(record)
    return Answer(
        id=name,
        dialogue=dialogue,
        completions=completions,
        annotator=_parse_annotator(record.get("annotator")),
        ranks=ranks,
        toxic=parse_marks(_parse_list(record, "toxic")) if record.get("toxic") else (),
        sources=tuple(map(str, _parse_list(record, "sources") if record.get("sources") else ())),
        time=str(record.get("time") or ""),
        seconds=parse_seconds(record.get("seconds")),
        place=place,
    )


def parse_ranks(values: Any) -> tuple[int | None, ...]:
    """Parse ranks and make them dense: 1, 1, 4 becomes 1, 1, 2.

    Raises:
        DataError: If a rank is neither None nor an integer of at least 1.
    """
    if not isinstance(values, list):
        raise DataError("ranks must be a list")
    for rank in values:
        if rank is not None and (type(rank) is not int or rank < 1):
            raise DataError(f"a rank must be an integer from 1, or null; got {rank!r}")
    order = sorted({rank for rank in values if rank is not None})
    dense = {rank: place for place, rank in enumerate(order, start=1)}
    return tuple(dense.get(rank) for rank in values)


def parse_marks(values: Any) -> tuple[bool, ...]:
    """Parse one boolean per completion.

    Raises:
        DataError: If they are not a list of booleans.
    """
    if not isinstance(values, list) or not all(isinstance(mark, bool) for mark in values):
        raise DataError("toxic must be a list of true and false")
    return tuple(values)


def parse_seconds(value: Any) -> float | None:
    """Parse a duration in seconds, rounded to tenths.

    Raises:
        DataError: If it is not a finite number of at least 0.
    """
    if value in (None, ""):
        return None
    try:
        number = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not math.isfinite(number) or number < 0:
        raise DataError(f"seconds must be a number of at least 0, got {value!r}")
    return round(number, 1)


def _parse_annotator(value: Any) -> str | None:
    if value in (None, ""):
        return None
    return take_text({"annotator": str(value)}, "annotator")


def _parse_pair(record: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[int | None, ...]]:
    chosen, rejected = take_text(record, "chosen"), take_text(record, "rejected")
    if chosen == rejected:
        raise DataError("chosen and rejected are the same text")
    return (chosen, rejected), (1, 2)


def _parse_ranking(
    record: Mapping[str, Any],
) -> tuple[tuple[str, ...], tuple[int | None, ...] | None]:
    skipped = record.get("skipped")
    if skipped not in (*_TRUE, *_FALSE):
        raise DataError(f"skipped must be true or false, got {skipped!r}")
    if skipped in _TRUE:
        completions = _parse_list(record, "completions") if record.get("completions") else []
        return tuple(map(str, completions)), None
    completions, ranks = _parse_list(record, "completions"), _parse_list(record, "ranks")
    if len(completions) != len(ranks):
        raise DataError(
            f"ranks must be {len(completions)}, one per completion; there are {len(ranks)}"
        )
    rank_of: dict[str, int | None] = {}
    parsed = parse_ranks(ranks)
    for number, (text, rank) in enumerate(zip(completions, parsed, strict=True), start=1):
        if rank is not None:
            take_text({f"completion {number}": text}, f"completion {number}")
        if rank_of.setdefault(str(text), rank) != rank:
            raise DataError(f"completion {number} is there already, with another rank")
    return tuple(map(str, completions)), parsed


def _parse_list(record: Mapping[str, Any], name: str) -> list[Any]:
    if name not in record:
        raise MissingColumnError(name, record)
    value = record[name]
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise DataError(f"{name} must be a list written as JSON ({error})") from None
    if not isinstance(value, list) or not value:
        raise DataError(f"{name} must be a list with at least one element")
    return value


# Several answers ----------------------------------------------------------------------------------


def group_by_dialogue(answers: Iterable[Answer]) -> tuple[dict[str, list[Answer]], list[str]]:
    """Group the answers on the same dialogue, whatever ids they use for it.

    Returns:
        The answers by dialogue id (the alphabetically first, if there are several), sorted by id;
        and a problem for each answer whose id is used for several dialogues. Those are left out.
    """
    dialogues: dict[str, set[str]] = defaultdict(set)
    for answer in answers:
        dialogues[answer.id].add(normalize_whitespace(answer.dialogue))
    problems, groups = [], defaultdict(list)
    for answer in answers:
        if (count := len(dialogues[answer.id])) > 1:
            problems.append(f"{answer.place}: id {answer.id!r} is used for {count} dialogues")
        else:
            groups[normalize_whitespace(answer.dialogue)].append(answer)
    by_id = {min(answer.id for answer in group): group for group in groups.values()}
    return {name: by_id[name] for name in sorted(by_id)}, problems


def keep_latest(answers: Sequence[Answer]) -> list[Answer]:
    """Keep only the last answer of each named annotator on the same completions.

    Args:
        answers: All answers on one dialogue, in the order in which they were given.
    """
    latest = {
        (answer.annotator, frozenset(answer.completions)) if answer.annotator else place: answer
        for place, answer in enumerate(answers)
    }
    return list(latest.values())
