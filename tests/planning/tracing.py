"""Traces of small steps."""

from typing import Any

from planning.parts import ATTENTION, COPIES, LOGITS, OTHER, Computation, Lengths
from planning.phases import trace_module

SHORT = Lengths(batch_size=2, eval_batch_size=2, source=16, target=8)
FP32 = Computation()


def step_of(module: Any, lengths: Lengths = SHORT, how: Computation = FP32) -> dict[str, int]:
    """Bytes by part at the peak of a training step."""
    return trace_module(module, lengths, how).phases["forward and backward"]


def total(parts: dict[str, int]) -> int:
    return sum(parts.values())


def passing(parts: dict[str, int]) -> int:
    """What comes and goes with a step."""
    return sum(parts[part] for part in (LOGITS, ATTENTION, OTHER, COPIES))
