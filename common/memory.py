"""How much memory this process, or its GPU, really takes."""

import logging
import resource
import sys
from pathlib import Path

import torch

logger = logging.getLogger(__name__)

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def resident_bytes() -> int:
    """Measure the resident set of this process now; its largest so far where no one tells."""
    if _STATUS.exists():
        return _read_status("VmRSS")
    return _largest_so_far()


def restart_peak(device: torch.device) -> bool:
    """Let the peak of the memory start again from now.

    Linux keeps the largest resident set of a process and lets it be reset (``man 5 proc``:
    writing 5 to /proc/pid/clear_refs); where it may not be, and on other systems, the largest since
    the process began is all there is.

    Returns:
        Whether it could be.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        _CLEAR.write_text("5")
    except OSError as error:
        logger.debug("The largest resident set cannot be reset: %s", error)
        return False
    return True


def measure_peak_memory(device: torch.device) -> tuple[int, str]:
    """Measure the peak since :func:`restart_peak`, and say of what.

    On CUDA what tensors took on the device, elsewhere the resident set of the whole process: what a
    container's limit and the kernel's killer go by.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device), "cuda tensors"
    peak = _read_status("VmHWM") if _STATUS.exists() else _largest_so_far()
    return peak, "process resident set"


def _read_status(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{_STATUS} has no {field}")


def _largest_so_far() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB
