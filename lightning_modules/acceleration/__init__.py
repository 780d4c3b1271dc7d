"""Optional: the same computation in less time on a CPU. One call, one switch, nothing else.

Each part saves at least 10 % of a full training step in ``benchmarks/acceleration.py``; a part that
does not is deleted. No part has weights, so what is saved and loaded stays as it was.
"""

from collections.abc import Callable

from torch import nn

from lightning_modules.acceleration.elementwise import use_elementwise
from lightning_modules.acceleration.linear import use_linear

__all__ = ["PARTS", "accelerate"]

PARTS: dict[str, Callable[[nn.Module], None]] = {
    "linear": use_linear,
    "elementwise": use_elementwise,
}
"""Changes that :func:`accelerate` makes, by name; the benchmark leaves out one at a time."""


def accelerate(model: nn.Module) -> None:
    """Replace modules of a model, in place, by faster ones that compute the same."""
    for change in PARTS.values():
        change(model)
