"""Tokens of PPO's rollouts with their numbers, for the page's microscope."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.run_folder import RolloutFiles
from reporting.comparison import Comparison
from reporting.groups import flatten
from reporting.runs import Run, is_number

BATCHES = 6
"""Most batches of a run that are shown, spread evenly from the first to the last."""

ROLLOUTS = 16
"""Most rollouts of a batch that are shown: the first of rank 0, so that nobody chose them."""

_SHOWN = (
    "logprobs", "ref_logprobs", "new_logprobs", "values", "entropy", "rewards", "advantages",
    "returns",
)  # fmt: skip
_DIGITS = 4
# What tokenizers write for a space and a line break.
_SIGNS = str.maketrans({"\u2581": " ", "\u0120": " ", "\u010a": "\n"})
_CLIP = "model.init_args.ppo.clip"


def list_rollouts(comparison: Comparison) -> tuple[list[dict[str, Any]], list[str]]:
    """Read some of the rollouts of every run that kept them.

    Returns:
        For each such run its name, "clip" (null where unknown), "total" (batches on disk) and
        "batches", each with its number, its number of rollouts and those that are shown; and a
        sentence for each file that could not be read.
    """
    found, problems = [], []
    for run in comparison.runs:
        folder = RolloutFiles(run.path)
        numbers = folder.batches()
        batches = []
        for number in spread_out(numbers, BATCHES):
            try:
                batches.append(_read_batch(folder.rows(number), number))
            except (ValueError, KeyError, TypeError, OSError) as error:
                problems.append(f"{folder.rows(number)}: shown without this batch: {error!r}")
        if batches:
            found.append(
                {
                    "name": run.name,
                    "clip": _find_clip(run),
                    "total": len(numbers),
                    "batches": batches,
                }
            )
    return found, problems


def spread_out(numbers: Sequence[int], most: int) -> list[int]:
    """Take so many numbers, evenly, the first and the last among them."""
    if len(numbers) <= most:
        return list(numbers)
    return [numbers[round(place * (len(numbers) - 1) / (most - 1))] for place in range(most)]


def _read_batch(path: Path, number: int) -> dict[str, Any]:
    with path.open(encoding="utf-8") as file:
        rows = [json.loads(row) for row in file]
    return {
        "batch": number,
        "rows": len(rows),
        "rollouts": [_describe(row) for row in rows[:ROLLOUTS]],
    }


def _describe(row: Mapping[str, Any]) -> dict[str, Any]:
    """Give one rollout: its texts, its scores, and by name a number for each token."""
    tokens = [str(piece).translate(_SIGNS) for piece in row.get("response_pieces") or []]
    # Rollouts from before pieces were written: the numbers of the tokens.
    tokens = tokens or [f"[{token}]" for token in row["response_tokens"]]
    columns = {name: _round_all(row[name]) for name in _SHOWN if row.get(name) is not None}
    for name, column in columns.items():
        if len(column) != len(tokens):
            raise ValueError(f"{name} has {len(column)} numbers for {len(tokens)} tokens")
    return {
        "id": str(row["id"]),
        "prompt": str(row["prompt"]),
        "finished": bool(row["finished"]),
        "score": _round(row["score"]),
        "beta": _round(row["beta"]),
        "tokens": tokens,
        "columns": columns,
    }


def _find_clip(run: Run) -> float | None:
    clip = flatten(run.config).get(_CLIP)
    return float(clip) if is_number(clip) else None


def _round(value: object) -> float | None:
    return round(value, _DIGITS) if is_number(value) else None


def _round_all(values: Sequence[object]) -> list[float | None]:
    return [_round(value) for value in values]
