"""Ways for a run to break off, and what is left to compare when it was resumed."""

import os
import signal
from pathlib import Path
from typing import Any

import lightning as L
import torch

from run_folder import RunFolder


class BreakOff(L.Callback):
    """Breaks a fit off when a hook is called for the n-th time.

    Args:
        hook: The hook's name.
        call: At which of its calls.
        how: By an ``error``, a ``FloatingPointError`` on every rank, Ctrl-C or SIGTERM.
    """

    def __init__(self, hook: str, call: int, how: str) -> None:
        self.calls = call
        self.how = how
        setattr(self, hook, self._count)

    def _count(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.sanity_checking:
            return
        self.calls -= 1
        if self.calls == 0:
            if self.how == "sigterm":
                os.kill(os.getpid(), signal.SIGTERM)
            else:
                raise {
                    "error": RuntimeError, "nan": FloatingPointError, "ctrl-c": KeyboardInterrupt
                }[self.how]("broken off")  # fmt: skip


def break_off(hook: str, call: int, how: str) -> list[str]:
    """Give the options that let a fit break off."""
    return [
        "--trainer.callbacks+=tests.breaking.BreakOff", "--trainer.callbacks.hook", hook,
        "--trainer.callbacks.call", str(call), "--trainer.callbacks.how", how,
    ]  # fmt: skip


def take_result(run: Path) -> dict[str, Any]:
    """Give all that a fit has left which must not depend on how often it was interrupted."""
    folder = RunFolder(run)
    result: dict[str, Any] = {
        "metrics.csv": folder.metrics_csv.read_text(),
        "samples.jsonl": folder.samples.read_text(),
        "summary.json": folder.read_summary()["metrics"],
    }
    for name in ("best", "last"):
        checkpoint = torch.load(folder.checkpoints / f"{name}.ckpt", weights_only=True)
        for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
            result[f"{name}/{key}"] = checkpoint[key]
    return result


def differences(found: Any, expected: Any, path: str = "") -> list[str]:
    """Name the places in which two nested results differ, be it in the last bit."""
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
