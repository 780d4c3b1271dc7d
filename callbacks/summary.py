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
            trained = trainer.global_step > 0  # perhaps before the run was resumed
            measured = {**cost, "measured": "fit"} if trained else {}
            self._record(trainer, pl_module, measured, self.state_dict()["metrics"])

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._earlier = {}
        self._start(pl_module)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record the test's time, and everything else if no training did."""
        cost = self._max_over_ranks(self._cost(), trainer)
        if trainer.is_global_zero:
            known = RunFolder(trainer.default_root_dir).read_summary()
            measured = {"test_seconds": cost["seconds"]}
            if known.get("measured") != "fit":
                measured |= {**cost, "measured": "test"}
            self._record(trainer, pl_module, measured, last_metrics(trainer), known.get("command"))

    def _record(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        measured: Mapping[str, Any],
        metrics: Mapping[str, float],
        command: str | None = None,
    ) -> None:
        folder = RunFolder(trainer.default_root_dir)
        folder.update_summary(**measured)
        if command is None:
            folder.update_summary(command=self.command, **describe_run(pl_module))
        describe = getattr(getattr(trainer, "datamodule", None), "describe", None)
        if describe is not None:
            folder.update_summary(data=folder.read_summary().get("data", {}) | describe())
        record_metrics(folder, metrics)

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
        amount = torch.tensor(cost["peak_memory_bytes"], dtype=torch.float64, device=self._device)
        most = trainer.strategy.reduce(amount, reduce_op="max")
        return cost | {"peak_memory_bytes": int(most)}


def describe_run(pl_module: Any) -> dict[str, Any]:
    """Describe a run: versions, seed, backbone, method, parameters."""
    trainable, total = pl_module.count_parameters()
    gate = getattr(pl_module, "gate_figures", None)
    seed = os.environ.get("PL_GLOBAL_SEED")
    return {
        "versions": find_versions(),
        "seed": int(seed) if seed else None,
        "backbone": pl_module.backbone_name,
        "method": name_method(pl_module),
        "parameters": {"trainable": trainable, "total": total},
        **({} if gate is None else {"gate": gate._asdict()}),
    }


def name_method(pl_module: object) -> str:
    """Return the module's class name in snake case, e.g. "soft_prompt", or its preference loss."""
    name = str(getattr(pl_module, "loss_name", type(pl_module).__name__))
    return _METHODS.get(name) or re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


def record_metrics(folder: RunFolder, metrics: Mapping[str, float]) -> None:
    """Record logged values, except those that are already recorded with n and interval."""
    known = folder.read_summary().get("metrics", {})
    new = {}
    for name, value in metrics.items():
        entry = known.get(name, {})
        # Lightning logs in float32.
        same = math.isclose(entry.get("value", math.inf), value, rel_tol=1e-5, abs_tol=1e-7)
        if entry.get("n") is None or not same:
            new[name] = Estimate(value)
    folder.record_metrics(new)


def last_metrics(trainer: L.Trainer) -> dict[str, float]:
    """Return the last finite value of every logged metric."""
    # Lightning's second names of a metric that is logged both ways, and the x axis.
    doubled = ("_step", "_epoch", "step", "epoch")
    return {
        name: float(value)
        for name, value in trainer.callback_metrics.items()
        if not name.endswith(doubled) and isinstance(value, Tensor) and value.isfinite()
    }
