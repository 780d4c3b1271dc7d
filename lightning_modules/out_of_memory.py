"""Out of memory: recognised on every device, and survived where less at a time will do."""

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

Result = TypeVar("Result")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, of a device or of the machine."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (
        "can't allocate memory" in text  # of torch's CPU allocator
        or "out of memory" in text
        or "ALLOC_FAILED" in text  # of cuBLAS and cuDNN
    )


def attempt(work: Callable[[], Result]) -> tuple[bool, Result | None]:
    """Do some work if memory allows.

    Returns:
        Whether it was done, and what it gave. Where it was not, its memory is free again, but for
        what others hold.
    """
    try:
        return True, work()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    # Behind the handler: there the traceback still holds every tensor of the attempt.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return False, None
