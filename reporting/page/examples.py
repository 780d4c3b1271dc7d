"""Collect the test dialogues with every run's summary, for the example browser."""

import re
from collections.abc import Mapping, Sequence, Set
from typing import Any

from metrics.names import find_unknown_names
from metrics.rouge_scores import stem
from reporting.comparison import COMPARED, Comparison
from reporting.runs import Key, Run, round_number

# The words that ROUGE sees; examples.js splits texts in the same way.
_WORD = re.compile(r"[a-z0-9]+", re.IGNORECASE | re.ASCII)

Stem = tuple[str, ...]


def list_examples(comparison: Comparison) -> dict[str, Any]:
    """Collect all test dialogues for which a run has a summary.

    Returns:
        "ids", "dialogues" and "references" by example, and "runs": for each run its name, color,
        "texts" (null if it has none), "scores" by metric, "overlap" (a 1 or 0 for each word:
        whether a reference has it) and "names" (proper names that the dialogue lacks). The texts
        from before PPO or DPO are a run of their own, unless another run has the same texts.
    """
    order: dict[Key, Mapping[str, Any]] = {}
    for run in comparison.runs:
        for key, row in run.rows.items():
            if isinstance(row.get("prediction"), str):
                order.setdefault(key, row)
            if key in order and "references" not in order[key] and "references" in row:
                order[key] = row
    references = [_texts(row.get("references")) for row in order.values()]
    known = [stems_of(texts) for texts in references]
    columns: list[dict[str, Any]] = []
    for end in ("", "_before"):
        for index, group in enumerate(comparison.groups):
            for run in group.runs:
                column = _describe(run, end, list(order), known)
                column |= {"group": index, "color": group.kind}
                same = any(column["texts"] == other["texts"] for other in columns)
                if any(text is not None for text in column["texts"]) and not (end and same):
                    columns.append(column)
    columns.sort(key=lambda column: column["group"])
    return {
        "ids": [identity for identity, _ in order],
        "dialogues": [str(row.get("dialogue") or "") for row in order.values()],
        "references": references,
        "runs": columns,
    }


def _describe(
    run: Run, end: str, keys: Sequence[Key], known: Sequence[Set[Stem]]
) -> dict[str, Any]:
    """Return a run's texts, or those from before PPO, example by example."""
    rows = [run.rows.get(key) or {} for key in keys]
    texts = [text if isinstance(text := row.get(f"prediction{end}"), str) else None for row in rows]
    scores = {
        metric: [round_number(row.get(metric + end), 5) for row in rows] for metric in COMPARED
    }
    return {
        "name": f"{run.name} (before)" if end else run.name,
        "texts": texts,
        "scores": {metric: column for metric, column in scores.items() if set(column) != {None}},
        "overlap": [
            None if text is None else mark_overlap(text, stems)
            for text, stems in zip(texts, known, strict=True)
        ],
        "names": [_names(row, text, end) for row, text in zip(rows, texts, strict=True)],
    }


def stems_of(texts: Sequence[str]) -> set[Stem]:
    """Return the stems of all words of some texts."""
    return {stem(word.lower()) for text in texts for word in _WORD.findall(text)}


def mark_overlap(text: str, known: Set[Stem]) -> str:
    """Write a 1 for each word of a text whose stem is known, and a 0 for the others."""
    return "".join("1" if stem(word.lower()) in known else "0" for word in _WORD.findall(text))


def _names(row: Mapping[str, Any], text: str | None, end: str) -> list[str]:
    """Return names and speakers that the dialogue lacks, from the test if it recorded them."""
    if text is None:
        return []
    if not end and isinstance(row.get("unknown_names"), list):
        return _texts(row["unknown_names"]) + _texts(row.get("unknown_speakers"))
    return find_unknown_names(text, str(row.get("dialogue") or ""))


def _texts(value: object) -> list[str]:
    return [str(one) for one in value] if isinstance(value, list) else []
