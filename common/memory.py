"""Measure the peak memory of this process, or of its GPU, and what is free."""

import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_MEMORY = Path("/proc/meminfo")
_CLEAR = Path("/proc/self/clear_refs")


def restart_peak(device: torch.device) -> None:
    """Restart the peak from the memory in use now, where the system allows it.

    Linux resets a process's largest resident set when 5 is written to its clear_refs (man 5 proc).
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        _CLEAR.write_text("5")


def measure_free_memory(device: torch.device) -> int | None:
    """Return the bytes that are free on a device; None if the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if _MEMORY.exists():
        for line in _MEMORY.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def measure_peak_memory(device: torch.device) -> tuple[int, str]:
    """Return the peak in bytes since :func:`restart_peak`, and what it covers.

    On CUDA the tensors on the device, elsewhere the resident set of the whole process, which is
    what limits of containers count.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device), "cuda tensors"
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024, "process resident set"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024, "process resident set"
