"""Completions that wait for their ranking: the file that ``feedback.py sample`` writes."""

from pathlib import Path
from typing import Any, NamedTuple

from common.jsonl import describe_bad_rows, read_jsonl


class Sample(NamedTuple):
    """A dialogue and different completions of it.

    Attributes:
        id: No other sample has it.
        dialogue: What the completions summarise.
        references: What people wrote, where that is known.
        completions: Two or more, or there is nothing to rank.
        sources: Which run each completion is from, where that is known.
    """

    id: str
    dialogue: str
    references: tuple[str, ...]
    completions: tuple[str, ...]
    sources: tuple[str, ...]


def read_samples(path: Path) -> list[Sample]:
    """Read a file of samples.

    Raises:
        ValueError: If there is no such file, or a line of it is no sample; says which and why.
    """
    if not path.is_file():
        raise ValueError(f"samples: there is no file {str(path)!r}; `feedback.py sample` makes one")
    samples: dict[str, Sample] = {}
    problems = []
    for number, record in read_jsonl(path):
        try:
            sample = _parse(record)
            if sample.id in samples:
                raise ValueError(f"id {sample.id!r} is there already")
            samples[sample.id] = sample
        except ValueError as error:
            problems.append(f"{path}:{number}: {error}")
    if problems:
        raise ValueError(f"samples: {describe_bad_rows(problems, len(problems))}")
    if not samples:
        raise ValueError(f"samples: {path} is empty")
    return list(samples.values())


def _parse(record: dict[str, Any] | str) -> Sample:
    if isinstance(record, str):
        raise ValueError(record)
    sample = Sample(
        take_id(record), take_text(record, "dialogue"), take_texts(record, "references", ()),
        take_texts(record, "completions"), take_texts(record, "sources", ()),
    )  # fmt: skip
    if sample.sources and len(sample.sources) != len(sample.completions):
        raise ValueError("sources must name one run a completion")
    return sample


def take_id(record: dict[str, Any]) -> str:
    """Take the id of a line, a text or a whole number.

    Raises:
        ValueError: If there is none.
    """
    value = record.get("id")
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError("id must be a text or a whole number")
    return _check(str(value), "id")


def take_text(record: dict[str, Any], name: str) -> str:
    """Take a text that is not empty.

    Raises:
        ValueError: If there is none.
    """
    value = record.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a text")
    return _check(value, name)


def take_texts(
    record: dict[str, Any], name: str, default: tuple[str, ...] | None = None
) -> tuple[str, ...]:
    """Take a list of texts that are not empty.

    Raises:
        ValueError: If there is none, and no default.
    """
    values = record.get(name, default)
    if not isinstance(values, list | tuple) or not all(isinstance(text, str) for text in values):
        raise ValueError(f"{name} must be a list of texts")
    return tuple(_check(text, name) for text in values)


def _check(text: str, name: str) -> str:
    if not text.strip():
        raise ValueError(f"{name} is empty")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} is not UTF-8") from None
    return text
