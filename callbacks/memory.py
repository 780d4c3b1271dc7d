"""The measured peak of a run's memory beside what was planned."""

import logging
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from planning.measure import measure_peak_memory, resident_bytes, restart_peak
from planning.memory import Plan
from run_folder import RunFolder

log = logging.getLogger(__name__)


class MemoryCallback(Callback):
    """Record in summary.json the peak that was measured, with the plan that was made before.

    ``"memory": {"plan_bytes", "plan": {bytes by part at the peak}, "plan_phase", "baseline_bytes",
    "measured_peak_bytes", "measured_kind"}``. On a GPU it is what tensors took on it. On a CPU it
    is the largest resident set of the whole process, restarted at the setup, before a model is
    loaded; ``baseline_bytes`` is the resident set then. A test beside a fit leaves the fit's.

    Args:
        plan: What was planned for this command; None is nothing.
    """

    def __init__(self, plan: Plan | None) -> None:
        self.plan = plan
        self._baseline = 0
        self._restarted = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Start the measurement before models are loaded."""
        device = trainer.strategy.root_device
        self._restarted = restart_peak(device)
        self._baseline = 0 if device.type == "cuda" else resident_bytes()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record a fit's peak; not called where there is nothing to train."""
        self._record(trainer)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record a test's peak, unless it is beside a fit's."""
        if RunFolder(trainer.default_root_dir).read_summary().get("measured") != "fit":
            self._record(trainer)

    def _record(self, trainer: L.Trainer) -> None:
        """Write the peak of the rank that took most."""
        device = trainer.strategy.root_device
        amount, kind = measure_peak_memory(device)
        if not self._restarted:
            kind += ", since the process began"
        if trainer.world_size > 1:
            tensor = torch.tensor(amount, dtype=torch.float64, device=device)
            amount = int(trainer.strategy.reduce(tensor, reduce_op="max"))
        if not trainer.is_global_zero:
            return
        found: dict[str, Any] = {
            "plan_bytes": None, "plan": None, "plan_phase": None,
            "baseline_bytes": self._baseline, "measured_peak_bytes": amount, "measured_kind": kind,
        }  # fmt: skip
        if (plan := self.plan) is not None:
            found |= {"plan_bytes": plan.total, "plan": plan.parts, "plan_phase": plan.peak}
            log.info(
                "Memory: planned %.2f GiB (%s), measured %.2f GiB (%s)",
                plan.total / 2**30, plan.peak, amount / 2**30, kind,
            )  # fmt: skip
        RunFolder(trainer.default_root_dir).update_summary(memory=found)
