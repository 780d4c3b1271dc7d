"""The file format of human judgments: rankings, or preference pairs.

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodules.reading import (
    ColumnNames,
    DataError,
    normalize_whitespace,
    parse_dialogue,
    parse_records,
    read_records,
    require_columns,
    take_text,
)

_PAIR_COLUMNS = ColumnNames(dialogue="prompt")
_TRUE = (True, "1", "true", "True")


@dataclass(frozen=True)
class Answer:
    """One annotator's judgment of the k completions of a dialogue.

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

    def __post_init__(self) -> None:
        count = len(self.completions)
        if self.ranks is not None and len(self.ranks) != count:
            raise DataError(f"ranks must be {count}, one per completion, got {len(self.ranks)}")
        if self.toxic and len(self.toxic) != count:
            raise DataError(f"toxic must be {count} marks, one per completion")

    def to_row(self) -> dict[str, Any]:
        """Return the answer as a line of the file."""
        judgment = {"skipped": True} if self.ranks is None else {"ranks": list(self.ranks)}
        return {
            "id": self.id, "dialogue": self.dialogue, "completions": list(self.completions),
            **judgment, "annotator": self.annotator, "toxic": list(self.toxic),
            "sources": list(self.sources), "time": self.time, "seconds": self.seconds,
        }  # fmt: skip


def read_answers(path: Path) -> list[Answer]:
    """Read a file of answers.

    Raises:
        DataError: If a line is not an answer; the message lists all of them.
    """
    remedy = "Correct or delete these lines"
    return parse_records(read_records(path), str(path), parse_answer, remedy=remedy)


def parse_answer(record: Mapping[str, Any]) -> Answer:
    """Parse the columns of a line.

    Raises:
        DataError: If the line is not an answer.
    """
    is_pair = "chosen" in record or "rejected" in record
    name, dialogue = parse_dialogue(record, _PAIR_COLUMNS if is_pair else ColumnNames())
    name = name or hashlib.sha256(normalize_whitespace(dialogue).encode()).hexdigest()[:16]
    completions, ranks = _parse_pair(record) if is_pair else _parse_ranking(record)
    return Answer(
        id=name,
        dialogue=dialogue,
        completions=completions,
        annotator=str(record.get("annotator") or "") or None,
        ranks=ranks,
        toxic=parse_marks(_parse_list(record, "toxic")) if record.get("toxic") else (),
        sources=tuple(map(str, _parse_list(record, "sources") if record.get("sources") else ())),
        time=str(record.get("time") or ""),
        seconds=parse_seconds(record.get("seconds")),
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
    """Parse a duration in seconds, rounded to tenths; None if it is empty.

    Raises:
        DataError: If it is not a finite number of at least 0.
    """
    if value in (None, ""):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not 0 <= number < math.inf:
        raise DataError(f"seconds must be a number of at least 0, got {value!r}")
    return round(number, 1)


def _parse_pair(record: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[int | None, ...]]:
    chosen, rejected = take_text(record, "chosen"), take_text(record, "rejected")
    if chosen == rejected:
        raise DataError("chosen and rejected are the same text")
    return (chosen, rejected), (1, 2)


def _parse_ranking(
    record: Mapping[str, Any],
) -> tuple[tuple[str, ...], tuple[int | None, ...] | None]:
    """Return the completions and their ranks; no ranks if the dialogue was skipped."""
    if record.get("skipped") in _TRUE:
        completions = _parse_list(record, "completions") if record.get("completions") else []
        return tuple(map(str, completions)), None
    completions = _parse_list(record, "completions")
    ranks = parse_ranks(_parse_list(record, "ranks"))
    if len(completions) != len(ranks):
        raise DataError(f"ranks must be {len(completions)}, one per completion, got {len(ranks)}")
    rank_of: dict[str, int | None] = {}
    for number, (text, rank) in enumerate(zip(completions, ranks, strict=True), start=1):
        if rank is not None:
            take_text({f"completion {number}": text}, f"completion {number}")
        if rank_of.setdefault(str(text), rank) != rank:
            raise DataError(f"completion {number} is there already, with another rank")
    return tuple(map(str, completions)), ranks


def _parse_list(record: Mapping[str, Any], name: str) -> list[Any]:
    require_columns(record, name)
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


def group_by_dialogue(answers: Iterable[Answer]) -> list[list[Answer]]:
    """Group the answers on the same dialogue, whatever ids they use for it, sorted by ids."""
    groups: dict[str, list[Answer]] = defaultdict(list)
    for answer in answers:
        groups[normalize_whitespace(answer.dialogue)].append(answer)
    return sorted(groups.values(), key=find_id)


def find_id(answers: Iterable[Answer]) -> str:
    """Return the id of a dialogue: the alphabetically first that its answers use."""
    return min(answer.id for answer in answers)


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
