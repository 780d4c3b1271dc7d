"""Samples: dialogues with several completions each, which wait to be ranked.

One JSON object a line, as ``alignsum rank sample`` writes it:

    {"id": "test_0", "dialogue": "...", "completions": ["...", "..."],
     "references": ["..."], "sources": ["lora", "full_ft"]}

``references`` and ``sources`` are optional, so completions from anywhere can be ranked.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from common.jsonl import read_jsonl
from datamodules.reading import ColumnNames, DataError, parse_dialogue, parse_records, take_text


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
    samples = parse_records(read_jsonl(path), str(path), _parse_sample, remedy="Correct them")
    counts = Counter(sample.id for sample in samples)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise ValueError(f"samples: {path} has several lines with the id {twice[0]!r}")
    return samples


def _parse_sample(record: Mapping[str, Any]) -> Sample:
    name, dialogue = parse_dialogue(record, ColumnNames())
    if not name:
        raise DataError("id is missing")
    completions, sources = _take_texts(record, "completions"), _take_texts(record, "sources")
    if sources and len(sources) != len(completions):
        raise DataError("sources must name one run per completion")
    return Sample(name, dialogue, _take_texts(record, "references"), completions, sources)


def _take_texts(record: Mapping[str, Any], name: str) -> tuple[str, ...]:
    values = record.get(name, [])
    if not isinstance(values, list):
        raise DataError(f"{name} must be a list of texts")
    return tuple(take_text({name: value}, name) for value in values)
