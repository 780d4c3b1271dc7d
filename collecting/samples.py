"""Samples: dialogues with several completions each, which wait to be ranked.

One JSON object a line, as ``alignsum rank sample`` writes it:

    {"id": "test_0", "dialogue": "...", "completions": ["...", "..."],
     "references": ["..."], "sources": ["lora", "full_ft"]}

``references`` and ``sources`` are optional, so completions from anywhere can be ranked.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from common.jsonl import describe_bad_rows, read_jsonl


class Sample(NamedTuple):
    """A dialogue and different completions of it.

    Attributes:
        id: Unique in its file.
        dialogue: The text that the completions summarize.
        references: Summaries written by people; empty if unknown.
        completions: The texts to rank; fewer than two cannot be ranked.
        sources: The run that each completion comes from; empty if unknown.
    """

    id: str
    dialogue: str
    references: tuple[str, ...]
    completions: tuple[str, ...]
    sources: tuple[str, ...]


def read_samples(path: Path) -> list[Sample]:
    """Read a file of samples.

    Raises:
        ValueError: If the file is missing or empty, or has invalid lines, which are listed.
    """
    if not path.is_file():
        raise ValueError(
            f"samples: there is no file {str(path)!r}; `alignsum rank sample` writes one"
        )
    samples: dict[str, Sample] = {}
    problems = []
    for number, record in read_jsonl(path):
        try:
            if isinstance(record, str):
                raise ValueError(record)
            sample = _parse_sample(record)
            if sample.id in samples:
                raise ValueError(f"id {sample.id!r} occurs twice")
            samples[sample.id] = sample
        except ValueError as error:
            problems.append(f"{path}:{number}: {error}")
    if problems:
        raise ValueError(f"samples: {describe_bad_rows(problems)}")
    if not samples:
        raise ValueError(f"samples: {path} is empty")
    return list(samples.values())


def _parse_sample(record: Mapping[str, Any]) -> Sample:
    name = record.get("id")
    if isinstance(name, bool) or not isinstance(name, str | int):
        raise ValueError("id must be a text or an integer")
    (dialogue,) = _take_texts({"dialogue": [record.get("dialogue")]}, "dialogue")
    completions, sources = _take_texts(record, "completions"), _take_texts(record, "sources", ())
    if sources and len(sources) != len(completions):
        raise ValueError("sources must name one run per completion")
    references = _take_texts(record, "references", ())
    return Sample(str(name), dialogue, references, completions, sources)


def _take_texts(
    record: Mapping[str, Any], name: str, default: tuple[str, ...] | None = None
) -> tuple[str, ...]:
    values = record.get(name, default)
    if not isinstance(values, list | tuple) or not all(isinstance(text, str) for text in values):
        raise ValueError(
            f"{name} must be text" if name == "dialogue" else f"{name} must be a list of texts"
        )
    for text in values:
        if not text.strip():
            raise ValueError(f"{name} is empty")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{name} is not UTF-8") from None
    return tuple(values)
