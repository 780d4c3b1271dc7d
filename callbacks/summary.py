"""summary.json: the settings, the cost and the results of a run."""

import math
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from common.memory import measure_peak_memory, restart_peak
from common.run_folder import RunFolder
from common.versions import find_versions, show_command
from metrics.intervals import Estimate

# Class names that do not split at their capitals.
_METHODS = {"LoRA": "lora", "PPOPolicy": "ppo"}


class SummaryCallback(Callback):
    """Write summary.json: command, versions, seed, backbone, method, data, cost, metrics.

    `seconds` is the wall time of training including validation; the times of a resumed run's parts
    add up, without steps that were lost and repeated. `test_seconds` is the time of a test. A run
    without training (prompting) records the time and memory of its test, as `measured` says. The
    last logged value of each metric is recorded, without n; callbacks that score examples record
    theirs with n and an interval.

    Args:
        command: The command line to record, without keys and tokens; None takes the process's.
    """

    def __init__(self, command: Sequence[str] | None = None) -> None:
        self.command = show_command(command or ["python", *sys.argv])
        self._started = 0.0
        self._device = torch.device("cpu")
        self._trainer: L.Trainer | None = None
        self._earlier: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the cost and the metrics of the fit up to now."""
        metrics = self._earlier.get("metrics", {})
        if self._trainer is not None:
            metrics = metrics | last_metrics(self._trainer)
        return {**self._cost(), "metrics": metrics}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them."""
        self._earlier = dict(state_dict)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._trainer = trainer
        self._start(pl_module)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record cost, metrics and settings."""
        cost = self._max_over_ranks(self._cost(), trainer)
        if trainer.is_global_zero:
            folder = RunFolder(trainer.default_root_dir)
            if trainer.global_step > 0:  # something was trained, perhaps before the run was resumed
                folder.update_summary(**cost, measured="fit")
                record_metrics(folder, self.state_dict()["metrics"])
            folder.update_summary(command=self.command, **describe_run(pl_module))
            record_data(trainer, folder)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._earlier = {}
        self._start(pl_module)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record the test's time, and everything else if no training did."""
        cost = self._max_over_ranks(self._cost(), trainer)
        if not trainer.is_global_zero:
            return
        folder = RunFolder(trainer.default_root_dir)
        known = folder.read_summary()
        folder.update_summary(test_seconds=cost["seconds"])
        if known.get("measured") != "fit":
            folder.update_summary(**cost, measured="test")
        if "command" not in known:
            folder.update_summary(command=self.command, **describe_run(pl_module))
        record_data(trainer, folder)
        record_metrics(folder, last_metrics(trainer))

    def _start(self, pl_module: L.LightningModule) -> None:
        self._started = time.monotonic()
        self._device = pl_module.device
        restart_peak(self._device)

    def _cost(self) -> dict[str, Any]:
        """Return wall time and peak memory, including those before the fit was resumed."""
        seconds = time.monotonic() - self._started + self._earlier.get("seconds", 0.0)
        amount, kind = measure_peak_memory(self._device)
        amount = max(amount, self._earlier.get("peak_memory_bytes", 0))
        return {"seconds": round(seconds, 3), "peak_memory_bytes": amount, "peak_memory_kind": kind}

    def _max_over_ranks(self, cost: dict[str, Any], trainer: L.Trainer) -> dict[str, Any]:
        """Return the peak memory of the rank that used most."""
        if trainer.world_size == 1:
            return cost
        amount = torch.tensor(cost["peak_memory_bytes"], dtype=torch.float64, device=self._device)
        most = trainer.strategy.reduce(amount, reduce_op="max")
        return cost | {"peak_memory_bytes": int(most)}


def describe_run(pl_module: Any) -> dict[str, Any]:
    """Describe a run: versions, seed, backbone, method, parameters."""
    trainable, total = pl_module.count_parameters()
    seed = os.environ.get("PL_GLOBAL_SEED")
    return {
        "versions": find_versions(),
        "seed": int(seed) if seed else None,
        "backbone": pl_module.backbone_name,
        "method": name_method(pl_module),
        "parameters": {"trainable": trainable, "total": total},
    }


def record_data(trainer: L.Trainer, folder: RunFolder) -> None:
    """Record under "data" what a datamodule with ``describe`` reports about its splits."""
    describe = getattr(getattr(trainer, "datamodule", None), "describe", None)
    if describe is not None:
        folder.update_summary(data=folder.read_summary().get("data", {}) | describe())


def name_method(pl_module: object) -> str:
    """Return the module's class name in snake case, e.g. "soft_prompt"."""
    name = type(pl_module).__name__
    return _METHODS.get(name) or re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


def record_metrics(folder: RunFolder, metrics: Mapping[str, float]) -> None:
    """Record logged values, except of metrics that are recorded with n and interval already."""
    known = folder.read_summary().get("metrics", {})
    folder.record_metrics(
        {
            name: Estimate(value)
            for name, value in metrics.items()
            if not is_estimate_of(known.get(name), value)
        }
    )


def is_estimate_of(known: Mapping[str, Any] | None, value: float) -> bool:
    """Return whether a recorded metric is the logged float32 with its n and interval."""
    return (
        known is not None
        and known["n"] is not None
        and math.isclose(known["value"], value, rel_tol=1e-5, abs_tol=1e-7)
    )


def last_metrics(trainer: L.Trainer) -> dict[str, float]:
    """Return the last finite value of every logged metric."""
    # Lightning's second names of a metric that is logged both ways, and the x axis.
    doubled = ("_step", "_epoch", "step", "epoch")
    return {
        name: float(value)
        for name, value in trainer.callback_metrics.items()
        if not name.endswith(doubled) and isinstance(value, Tensor) and value.isfinite()
    }
