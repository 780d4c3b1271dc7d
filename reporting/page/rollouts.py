"""Read PPO rollouts with the numbers of their tokens, for the token view."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from common.run_folder import RunFolder
from reporting.comparison import Comparison
from reporting.runs import is_number
from reporting.seeds import flatten

T = TypeVar("T")

BATCHES = 6
"""Maximum number of batches of a run, spread evenly from the first to the last."""

ROLLOUTS = 16
"""Maximum number of rollouts of a batch: the first ones, so that nothing selects them."""

_COLUMNS = (
    "logprobs", "ref_logprobs", "new_logprobs", "values", "entropy", "rewards", "advantages",
    "returns",
)  # fmt: skip
_DIGITS = 4
# What tokenizers write for a space and a line break.
_SIGNS = str.maketrans({"\u2581": " ", "\u0120": " ", "\u010a": "\n"})


def list_rollouts(comparison: Comparison) -> tuple[list[dict[str, Any]], list[str]]:
    """Read some rollouts of every run that recorded them.

    Returns:
        For each such run its name, "clip" (null if unknown), "total" (recorded batches) and
        "batches"; and a sentence about each file that could not be read.
    """
    found, problems = [], []
    for run in comparison.runs:
        files = sorted(RunFolder(run.path).rollouts.glob("*.jsonl"))
        files = [path for path in files if "-rank" not in path.stem or "-rank0" in path.stem]
        batches = []
        for path in spread_out(files, BATCHES):
            try:
                batches += _read_batches(path)
            except (ValueError, KeyError, TypeError, OSError) as error:
                problems.append(f"{path}: shown without this batch: {error!r}")
        if batches:
            clip = flatten(run.config).get("model.init_args.ppo.clip")
            found.append(
                {
                    "name": run.name,
                    "clip": float(clip) if is_number(clip) else None,
                    "total": max(len(files), len(batches)),
                    "batches": spread_out(batches, BATCHES),
                }
            )
    return found, problems


def spread_out(items: Sequence[T], most: int) -> list[T]:
    """Take items evenly, including the first and the last."""
    if len(items) <= most:
        return list(items)
    return [items[round(index * (len(items) - 1) / (most - 1))] for index in range(most)]


def _read_batches(path: Path) -> list[dict[str, Any]]:
    batches: dict[int, list[Mapping[str, Any]]] = {}
    with path.open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            batches.setdefault(int(row["batch"]), []).append(row)
    return [
        {"batch": number, "rows": len(rows), "rollouts": [_describe(r) for r in rows[:ROLLOUTS]]}
        for number, rows in sorted(batches.items())
    ]


def _describe(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a rollout's texts and scores, and by name a number for each token."""
    tokens = [str(piece).translate(_SIGNS) for piece in row.get("response_pieces") or []]
    tokens = tokens or [f"[{token}]" for token in row["response_tokens"]]
    columns = {name: _round_all(row[name]) for name in _COLUMNS if row.get(name) is not None}
    for name, column in columns.items():
        if len(column) != len(tokens):
            raise ValueError(f"{name} has {len(column)} numbers for {len(tokens)} tokens")
    return {
        "id": str(row["id"]),
        "prompt": str(row.get("prompt") or ""),
        "finished": bool(row["finished"]),
        "score": _round_all([row["score"]])[0],
        "tokens": tokens,
        "columns": columns,
    }


def _round_all(values: Sequence[object]) -> list[float | None]:
    return [round(value, _DIGITS) if is_number(value) else None for value in values]
