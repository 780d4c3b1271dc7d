"""Ways to interrupt a run, and what to compare once it was resumed."""

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch

from common.run_folder import RunFolder
from lightning_modules.optimizer_step import gradients


class BreakOff(L.Callback):
    """Interrupt a fit when a hook is called for the n-th time.

    Args:
        hook: The hook's name.
        call: At which of its calls.
        how: By an ``error``, a ``FloatingPointError`` on every rank, Ctrl-C in the middle of
            anything (``ctrl-c``), or a signal by its name.
        rank: On which rank; None is on all.
    """

    def __init__(self, hook: str, call: int, how: str, rank: int | None = None) -> None:
        self.calls = call
        self.how = how
        self.rank = rank
        setattr(self, hook, self._count)

    def _count(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.sanity_checking:
            return
        if self.rank not in (None, trainer.global_rank):
            return
        self.calls -= 1
        if self.calls == 0:
            if self.how.startswith("sig"):
                os.kill(os.getpid(), signal.Signals[self.how.upper()])
            else:
                raise {
                    "error": RuntimeError, "nan": FloatingPointError, "ctrl-c": KeyboardInterrupt
                }[self.how]("broken off")  # fmt: skip


def break_off(hook: str, call: int, how: str, rank: int | None = None) -> list[str]:
    """Return the options that interrupt a fit."""
    one = [] if rank is None else ["--trainer.callbacks.rank", str(rank)]
    return [
        "--trainer.callbacks+=tests.breaking.BreakOff", "--trainer.callbacks.hook", hook,
        "--trainer.callbacks.call", str(call), "--trainer.callbacks.how", how, *one,
    ]  # fmt: skip


class Poison(L.Callback):
    """Set gradients to NaN after their backward pass.

    Args:
        steps: Of which optimizer steps, from 0.
        passes: Of which backward passes of this process, from 0.
    """

    def __init__(self, steps: Sequence[int] = (), passes: Sequence[int] = ()) -> None:
        self.steps = steps
        self.passes = passes
        self.done = 0

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.done += 1
        if trainer.global_step in self.steps or self.done - 1 in self.passes:
            for gradient in gradients(trainer.optimizers[0]):
                gradient.fill_(torch.nan)


def poison(*numbers: int, of: str = "steps") -> list[str]:
    """Return the options that poison a fit."""
    return [
        "--trainer.callbacks+=tests.breaking.Poison", f"--trainer.callbacks.{of}={list(numbers)}",
    ]  # fmt: skip


CLOCKS = ("time/", "perf/")
"""Metrics that no two runs share."""


def take_result(run: Path) -> dict[str, Any]:
    """Return everything in a run folder that must not depend on interruptions."""
    folder = RunFolder(run)
    result: dict[str, Any] = {
        "metrics.csv": [without_clocks(row) for row in folder.read_metrics_csv()],
        "samples.jsonl": folder.samples.read_text() if folder.samples.exists() else "",
        "summary.json": without_clocks(folder.read_summary()["metrics"]),
    }
    for name in ("best", "last"):
        if name == "best" and not (folder.checkpoints / "best.ckpt").exists():
            continue
        checkpoint = torch.load(folder.checkpoints / f"{name}.ckpt", weights_only=True)
        for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
            result[f"{name}/{key}"] = checkpoint[key]
    return result


def without_clocks(metrics: dict[str, Any]) -> dict[str, Any]:
    """Remove metrics that were measured by a clock."""
    return {name: value for name, value in metrics.items() if not name.startswith(CLOCKS)}


def differences(found: Any, expected: Any, path: str = "") -> list[str]:
    """Name the places where two nested results differ, if only in the last bit."""
    if isinstance(expected, torch.Tensor):
        return [] if torch.equal(found, expected) else [path]
    if isinstance(expected, dict) and isinstance(found, dict):
        names = expected.keys() | found.keys()
        return [
            place
            for name in names
            for place in differences(found.get(name), expected.get(name), f"{path}/{name}")
        ]
    if isinstance(expected, list) and isinstance(found, list) and len(found) == len(expected):
        pairs = enumerate(zip(found, expected, strict=True))
        return [place for i, (a, b) in pairs for place in differences(a, b, f"{path}/{i}")]
    return [] if found == expected else [f"{path}: {found!r} is not {expected!r}"]
