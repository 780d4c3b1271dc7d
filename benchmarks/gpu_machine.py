"""What a GPU is measured on, and how: sizes, clocks, and what the machine can do at best."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import lightning as L
import torch

from benchmarks.models import FLAN_T5_BASE, ROBERTA_BASE

PEAKS = {
    "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "H200": 989e12, "A100": 312e12,
    "L40S": 362e12, "L40": 181e12, "A10G": 70e12, "A10": 125e12, "L4": 121e12,
    "4090": 165e12, "3090": 71e12,
}  # fmt: skip
"""Dense bf16 operations a second by NVIDIA's data sheets; the first name that is in the GPU's."""

WARMUP = 3
"""Steps that are not counted."""


class Scale(NamedTuple):
    """How large everything is; lengths in tokens."""

    t5: dict[str, Any]
    roberta: dict[str, Any]
    rows: int
    source: int
    target: int
    product: int
    copied: int
    backends: tuple[str, ...]


BASE = Scale(
    FLAN_T5_BASE, ROBERTA_BASE, 16, 256, 64, 8192, 2**30, ("inductor", "cudagraphs")
)  # fmt: skip
TINY = Scale(
    FLAN_T5_BASE | {
        "vocab_size": 1200, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_heads": 4, "num_layers": 1,
        "num_decoder_layers": 1,
    },
    {
        "vocab_size": 1200, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 64,
    },
    4, 16, 8, 64, 2**12, ("eager",),
)  # fmt: skip


class Machine:
    """What is measured on, and what it can do at best.

    Args:
        scale: How large the operands are.
        peak: Operations a second; None looks it up by the GPU's name.
    """

    def __init__(self, scale: Scale, peak: float | None) -> None:
        on_gpu = scale is BASE
        self.device = torch.device("cuda" if on_gpu else "cpu")
        self.name = torch.cuda.get_device_name() if on_gpu else "CPU, a dry run"
        self.peak = peak or next((PEAKS[name] for name in PEAKS if name in self.name), None)
        square = torch.randn(scale.product, scale.product, device=self.device).bfloat16()
        self.product = 2 * scale.product**3 / self.time(lambda: square @ square, 10)
        old = torch.zeros(scale.copied // 4, device=self.device)
        new = torch.empty_like(old)
        self.bandwidth = 2 * scale.copied / self.time(lambda: new.copy_(old), 10)

    def wait(self) -> None:
        """Wait for what was launched."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def time(self, work: Callable[[], object], times: int) -> float:
        """Give the seconds of some work, on the mean over so many times, after WARMUP ones."""
        for _ in range(WARMUP):
            work()
        self.wait()
        started = time.perf_counter()
        for _ in range(times):
            work()
        self.wait()
        return (time.perf_counter() - started) / times


class Stopwatch(L.Callback):
    """Takes the time of each step."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.seconds: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        """Begin a step."""
        self.machine.wait()
        self.started = time.perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        """End a step."""
        self.machine.wait()
        self.seconds.append(time.perf_counter() - self.started)
