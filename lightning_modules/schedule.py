"""Schedules of the learning rate."""

import logging
from dataclasses import dataclass
from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

logger = logging.getLogger(__name__)

Shape = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True)
class Schedule:
    """A linear warm-up from 0, then a constant rate or a decay to 0 at the last step.

    Args:
        shape: The rate after the warm-up.
        warmup_fraction: Fraction of the steps in the warm-up.
        warmup_steps: The same as a number of steps; replaces the fraction.

    Raises:
        ValueError: If a setting is out of range, or the warm-up is given twice.
    """

    shape: Shape
    warmup_fraction: float = 0.0
    warmup_steps: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.warmup_fraction < 1:
            raise ValueError(f"warmup_fraction must be in [0, 1), got {self.warmup_fraction}")
        if self.warmup_steps is not None and (self.warmup_steps < 0 or self.warmup_fraction):
            raise ValueError(
                "warmup_steps must be 0 or more, and replaces warmup_fraction: got "
                f"warmup_steps {self.warmup_steps} and warmup_fraction {self.warmup_fraction}"
            )

    def build(self, optimizer: Optimizer, steps: int) -> LRScheduler:
        """Build the scheduler of a fit with this many optimizer steps."""
        # The "constant" of transformers silently ignores the warm-up.
        name = "constant_with_warmup" if self.shape == "constant" else self.shape
        warmup = self.warmup_steps
        if warmup is None:
            warmup = round(self.warmup_fraction * steps)
        elif warmup >= steps:
            logger.warning("the fit ends at step %d, within warmup_steps %d", steps, warmup)
        return get_scheduler(name, optimizer, warmup, steps)
