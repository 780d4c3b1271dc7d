"""Read PPO rollouts with the numbers of their tokens, for the token view."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from common.jsonl import read_jsonl
from common.run_folder import RunFolder
from reporting.comparison import Comparison
from reporting.runs import round_number
from reporting.seeds import flatten

BATCHES = 6
"""Maximum number of batches of a run, spread evenly from the first to the last."""

ROLLOUTS = 16
"""Maximum number of rollouts of a batch: the first ones, so that nothing selects them."""

_COLUMNS = (
    "logprobs", "ref_logprobs", "new_logprobs", "values", "entropy", "rewards", "advantages",
    "returns",
)  # fmt: skip
# What tokenizers write for a space and a line break.
_SIGNS = str.maketrans({"\u2581": " ", "\u0120": " ", "\u010a": "\n"})


def list_rollouts(comparison: Comparison) -> tuple[list[dict[str, Any]], list[str]]:
    """Read some rollouts of every run that recorded them, of its first rank.

    Returns:
        For each such run its name, "clip" (null if unknown), "total" (recorded batches) and
        "batches"; and a sentence about each file that could not be read.
    """
    found, problems = [], []
    for run in comparison.runs:
        files = sorted(RunFolder(run.path).rollouts.glob("*-rank0.jsonl"))
        batches = []
        for place in np.linspace(0, len(files) - 1, min(BATCHES, len(files))):
            path = files[round(place)]
            try:
                batches.append(_read_batch(path))
            except (ValueError, KeyError, TypeError, OSError) as error:
                problems.append(f"{path}: shown without this batch: {error!r}")
        if batches:
            clip = round_number(flatten(run.config).get("model.ppo.clip"))
            found.append({"name": run.name, "clip": clip, "total": len(files), "batches": batches})
    return found, problems


def _read_batch(path: Path) -> dict[str, Any]:
    rows = []
    for number, row in read_jsonl(path):
        if isinstance(row, str):
            raise ValueError(f"line {number}: {row}")
        rows.append(row)
    rollouts = [_describe(row) for row in rows[:ROLLOUTS]]
    return {"batch": int(rows[0]["batch"]), "rows": len(rows), "rollouts": rollouts}


def _describe(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a rollout's texts and scores, and by name a number for each token."""
    tokens = [str(piece).translate(_SIGNS) for piece in row.get("response_pieces") or []]
    tokens = tokens or [f"[{token}]" for token in row["response_tokens"]]
    columns = {name: list(map(round_number, row[name])) for name in _COLUMNS if row.get(name)}
    for name, column in columns.items():
        if len(column) != len(tokens):
            raise ValueError(f"{name} has {len(column)} numbers for {len(tokens)} tokens")
    return {
        "id": str(row["id"]),
        "prompt": str(row.get("prompt") or ""),
        "finished": bool(row["finished"]),
        "score": round_number(row["score"]),
        "tokens": tokens,
        "columns": columns,
    }
