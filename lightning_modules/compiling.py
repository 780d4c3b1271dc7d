"""torch.compile where shapes allow it: the blocks of a model, and what is said before it starts."""

import importlib.util
import os
import shutil
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from weakref import WeakSet

import torch
from torch import nn

from lightning_modules.sharding import find_blocks

_COMPILED: "WeakSet[nn.Module]" = WeakSet()

_VARIANTS = 64
"""How often a block may be compiled: for both stacks, first and later blocks, with gradient and
without, each adapter. From torch's own limit of 8 on the rest would run uncompiled."""


def compile_blocks(model: nn.Module, backend: str) -> None:
    """Compile each transformer block of a model, in place, for passes without a cache.

    By blocks, as they share their code: it is compiled once for all of an encoder's layers (but the
    first, which makes the position bias) and once for all of a decoder's, for any batch and length.
    Weights keep their names, so that checkpoints and exports are those of the plain model. What is
    compiled is compiled at its first use.

    Args:
        model: A backbone, with or without adapters.
        backend: Of ``torch.compile``.
    """
    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, _VARIANTS)
    for block in find_blocks(model):
        block.compile(backend=backend, dynamic=True)
        _COMPILED.add(block)


def has_compiled() -> bool:
    """Whether some model's blocks are compiled."""
    return bool(_COMPILED)


def eagerly() -> AbstractContextManager[object]:
    """Run compiled blocks as they are, inside a ``with`` block.

    For generation: its keys and values grow at every step, and each layer has its own place in
    them, so that every layer would be compiled by itself.
    """
    # Where nothing is compiled, the seconds that importing the compiler takes are not spent.
    return torch.compiler.set_stance("force_eager") if _COMPILED else nullcontext()


def find_compile_problem(setting: str, backend: str | None, accelerator: str) -> str | None:
    """Say why nothing can be compiled here, or return None where it can.

    Args:
        setting: Its name, for the message.
        backend: Of ``torch.compile``; None compiles nothing.
        accelerator: The Trainer's.
    """
    if backend is None:
        return None
    # With those for debugging, which are many.
    if backend not in torch.compiler.list_backends(exclude_tags=()):
        known = ", ".join(torch.compiler.list_backends())
        return f"{setting}: there is no backend {backend!r}; there are {known}"
    on_gpu = accelerator in ("gpu", "cuda", "auto") and torch.cuda.is_available()
    if backend == "cudagraphs" and not on_gpu:
        return f"{setting}: cudagraphs captures the kernels of a CUDA GPU, and this run has none"
    if backend == "inductor" and on_gpu and importlib.util.find_spec("triton") is None:
        return f"{setting}: inductor needs triton on a GPU; install it: pip install triton"
    compilers = filter(None, (os.environ.get("CXX"), "g++", "clang++"))
    if backend == "inductor" and not on_gpu and not any(map(shutil.which, compilers)):
        return f"{setting}: inductor needs a C++ compiler on a CPU; install g++, or leave it out"
    return None
