"""Optional: the same computation in less time on a CPU. One call, one switch, nothing else.

``benchmarks/acceleration.py`` measures a training step with and without each part; one that saves
less than 10 % for every method is to be deleted. No part has weights of its own, so what is saved
and loaded stays as it was.
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
