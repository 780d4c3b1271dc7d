"""For tests of torch.compile: a backend that counts, and nothing left of another test."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import pytest
import torch

from lightning_modules import compiling


@contextmanager
def nothing_compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forget compiled code before and after a test."""
    monkeypatch.setattr(compiling, "_COMPILED", WeakSet())
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Counting:
    """A backend that runs what was traced as it is; counts the graphs and how often they ran."""

    def __init__(self) -> None:
        self.graphs = 0
        self.runs = 0

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.graphs += 1

        def run(*arguments: Any) -> Any:
            self.runs += 1
            return graph.forward(*arguments)

        return run
