"""How far metrics of the validation have fallen since the first one of a run."""

import math
from collections.abc import Mapping
from typing import Any

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn


class Falls:
    """Compares each validation of a fit with its first.

    :class:`callbacks.validation.ValidateAtStart` makes the first one that of the start; without it
    some training has passed by then.

    Args:
        owner: Whose setting this is, for messages.
        limits: For each metric, higher being better, how far it may fall below its first value.

    Raises:
        ValueError: If a limit is below 0 or not a number.
    """

    def __init__(self, owner: str, limits: Mapping[str, float]) -> None:
        self.owner = owner
        self.limits = dict(limits)
        self.first: dict[str, float] = {}
        self.now: dict[str, float] = {}
        if wrong := [f"{name} {limit}" for name, limit in limits.items() if not limit >= 0]:
            raise ValueError(f"{owner}: falls must be 0 or more, got {', '.join(wrong)}")

    def look(self, logged: Mapping[str, Any]) -> None:
        """Take the values of a validation that has ended; the first ones are kept to compare with.

        Raises:
            ValueError: If the validation did not log one of the metrics.
        """
        if missing := [name for name in self.limits if name not in logged]:
            there = ", ".join(sorted(name for name in logged if name.startswith("val/"))) or "none"
            raise ValueError(
                f"{self.owner}: falls names {', '.join(missing)}, which this validation has not "
                f"logged; logged were: {there}"
            )
        self.now = {name: float(logged[name]) for name in self.limits}
        self.first = self.first or self.now

    def find_fallen(self) -> list[str]:
        """Say of each metric that is too low now, or unknown, from where to where it fell."""
        unknown = math.nan
        pairs = {
            name: (self.first.get(name, unknown), self.now.get(name, unknown))
            for name in self.limits
        }
        return [
            f"{name} fell from {first:.4f} to {now:.4f}"
            for name, (first, now) in pairs.items()
            if not now >= first - self.limits[name]
        ]


def is_validation_of_fit(trainer: L.Trainer) -> bool:
    """Whether the validation at hand is one that a fit makes, and not Lightning's dry run."""
    return trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
