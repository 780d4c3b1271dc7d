"""Numbers that are not finite, met in training: what they were met in, and what is done then."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, NoReturn

import torch
from torch import Tensor

Row = dict[str, Any]


@dataclass(frozen=True)
class Fault:
    """Something that no weight may learn from, and what it takes to look at it again.

    It is met before the weights change, and by all ranks at the same place.

    Args:
        what: Which number it is, and its value.
        place: Where in the run, as the name of a file.
        position: The same as a number: optimizer steps, or batches of rollouts, before this one.
        unit: What is skipped, ``step``, ``minibatch`` or ``batch``.
        ids: Of the rows it was met in, on this rank; those to blame first.
        rows: These rows, as JSON values for people to read.
        content: The same as tensors and plain values, for ``replay.py``.
    """

    what: str
    place: str
    position: int
    unit: str
    ids: Sequence[str]
    rows: Sequence[Row]
    content: dict[str, Any]

    def __str__(self) -> str:
        shown = ", ".join(self.ids[:8]) or "none on this rank"
        more = f" and {len(self.ids) - 8} more" if len(self.ids) > 8 else ""
        return f"{self.what} at {self.place}, on rows {shown}{more}"


def stop_at(fault: Fault, why: str = "") -> NoReturn:
    """End the fit.

    Args:
        fault: What was met.
        why: What else there is to say of it.

    Raises:
        FloatingPointError: Always.
    """
    raise FloatingPointError(
        f"{fault}{why}; no weight was changed by it, the last checkpoint is untouched. "
        "Try a lower learning rate, or precision 32-true"
    )


def name_not_finite(values: dict[str, Tensor]) -> str | None:
    """Say which of some scalars are not finite, or return None where all are."""
    numbers = torch.stack([value.float() for value in values.values()]).tolist()
    bad = {name: value for name, value in zip(values, numbers, strict=True) if not isfinite(value)}
    return ", ".join(f"{name} is {value}" for name, value in bad.items()) or None


def readable_rows(batch: Mapping[str, Any]) -> list[Row]:
    """Give a batch's rows without their tensors."""
    lists = {name: each for name, each in batch.items() if isinstance(each, list)}
    names = {"ids": "id", "dialogues": "dialogue"}
    rows: Iterable[tuple[Any, ...]] = zip(*lists.values(), strict=True)
    return [
        {names.get(name, name): value for name, value in zip(lists, row, strict=True)}
        for row in rows
    ]
