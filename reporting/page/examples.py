"""The dialogues of a comparison with every run's summary, in columns, for the page's browser."""

import re
from collections.abc import Mapping, Sequence, Set
from typing import Any

from metrics.names import find_unknown_names
from metrics.words import stem
from reporting.comparison import COMPARED, Comparison
from reporting.runs import Key, Run, is_number

BEFORE = "_before"
"""End of the columns that belong to the texts of before PPO."""

# The words that ROUGE sees: the script splits a text in the same way.
_WORD = re.compile(r"[a-z0-9]+", re.IGNORECASE | re.ASCII)
_DECIMALS = 5

Columns = dict[str, Any]
Stem = tuple[str, ...]


def list_examples(comparison: Comparison) -> Columns:
    """Give all examples and all runs' summaries of them.

    Returns:
        "ids", "dialogues" and "references" in the order of the runs' files, and "runs": for each
        its name, the place of its group, "texts" (null where it has none), "scores" by metric,
        "overlap" (for each word whether a reference has it, as a text of 0 and 1) and "names"
        (proper names that the dialogue does not have).
    """
    order: dict[Key, Mapping[str, Any]] = {}
    for run in comparison.runs:
        for key, row in run.rows.items():
            if "references" in row or key not in order:
                order.setdefault(key, row)
    keys = list(order)
    references = [_texts(order[key].get("references")) for key in keys]
    known = [stems_of(texts) for texts in references]
    columns = []
    for place, group in enumerate(comparison.groups):
        for run in group.runs:
            for end, title in (("", run.name), (BEFORE, f"{run.name} (before)")):
                if any(f"prediction{end}" in row for row in run.rows.values()):
                    columns.append(_describe(run, end, title, place, keys, known))
    return {
        "ids": [identity for identity, _ in keys],
        "dialogues": [str(order[key].get("dialogue") or "") for key in keys],
        "references": references,
        "runs": columns,
    }


def _describe(
    run: Run,
    end: str,
    title: str,
    place: int,
    keys: Sequence[Key],
    known: Sequence[Set[Stem]],
) -> Columns:
    """Give one run's texts, or those of before PPO, example by example."""
    rows = [run.rows.get(key) or {} for key in keys]
    texts = [_text(row.get(f"prediction{end}")) for row in rows]
    scores = {metric: [_round(row.get(metric + end)) for row in rows] for metric in COMPARED}
    return {
        "name": title,
        "colour": place,
        "texts": texts,
        "scores": {
            metric: column
            for metric, column in scores.items()
            if any(value is not None for value in column)
        },
        "overlap": [
            None if text is None else mark_overlap(text, stems)
            for text, stems in zip(texts, known, strict=True)
        ],
        "names": [_names(row, text, end) for row, text in zip(rows, texts, strict=True)],
    }


def stems_of(texts: Sequence[str]) -> set[Stem]:
    """Give the stems of all words of some texts."""
    return {stem(word.lower()) for text in texts for word in _WORD.findall(text)}


def mark_overlap(text: str, known: Set[Stem]) -> str:
    """Say of each word of a text whether a reference has it too, by their stems as ROUGE does.

    Args:
        text: Any text.
        known: The stems of the references' words.

    Returns:
        A 1 or a 0 for each word.
    """
    return "".join("1" if stem(word.lower()) in known else "0" for word in _WORD.findall(text))


def _names(row: Mapping[str, Any], text: str | None, end: str) -> list[str]:
    """Names and speakers that the dialogue does not have: what the test found, else names."""
    if text is None:
        return []
    known = row.get("unknown_names") if not end else None
    if isinstance(known, list):
        return _texts(known) + _texts(row.get("unknown_speakers"))
    return find_unknown_names(text, str(row.get("dialogue") or ""))


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _texts(value: object) -> list[str]:
    return [str(one) for one in value] if isinstance(value, list) else []


def _round(value: object) -> float | None:
    return round(value, _DECIMALS) if is_number(value) else None
