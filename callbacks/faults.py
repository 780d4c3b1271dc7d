"""Go past what is not finite, once, with a record of it; stop where it happens again."""

import logging
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import move_data_to_device

from callbacks.checkpoint_files import load_checkpoint
from common.run_folder import RunFolder, replacing, write_lines
from lightning_modules.faults import Fault, stop_at
from lightning_modules.stepping import SteppingModule

log = logging.getLogger(__name__)


class FaultFolder:
    """Names, writes and reads the files of a run's ``faults/``.

    For each fault and rank ``step00000012-rank0.jsonl``, the rows it was met in, and
    ``step00000012-rank0.pt``, the same as tensors; and once ``step00000012.ckpt``, the trained
    weights that met it.

    Args:
        run_dir: The run folder.
    """

    def __init__(self, run_dir: str | Path) -> None:
        self.path = RunFolder(run_dir).faults

    def rows(self, place: str, rank: int = 0) -> Path:
        """Name the file of a rank's rows."""
        return self.path / f"{place}-rank{rank}.jsonl"

    def tensors(self, place: str, rank: int = 0) -> Path:
        """Name the file of a rank's tensors."""
        return self.rows(place, rank).with_suffix(".pt")

    def weights(self, place: str) -> Path:
        """Name the file of the weights."""
        return self.path / f"{place}.ckpt"

    def write(self, trainer: L.Trainer, fault: Fault) -> Path:
        """Write a fault down, on every rank; give the file of rows."""
        rank = trainer.global_rank
        write_lines(self.rows(fault.place, rank), [as_json(row) for row in fault.rows])
        content = plain(move_data_to_device(fault.content, torch.device("cpu")))
        with replacing(self.tensors(fault.place, rank)) as partial_file:
            torch.save({"what": fault.what, "place": fault.place, **content}, partial_file)
        trainer.save_checkpoint(self.weights(fault.place), weights_only=True)
        return self.rows(fault.place, rank)

    def read(self, place: str, rank: int = 0) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read a rank's tensors, and the weights.

        Raises:
            ValueError: If there is no such fault; the message names those that there are.
        """
        if not self.tensors(place, rank).is_file():
            there = ", ".join(sorted(path.stem for path in self.path.glob("*.ckpt"))) or "none"
            raise ValueError(f"there is no fault {place!r} in {self.path}; there: {there}")
        return load_checkpoint(self.tensors(place, rank)), load_checkpoint(self.weights(place))


def plain(value: Any) -> Any:
    """Give named tuples as dicts: a file of tensors and plain values is read without classes."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value


def as_json(value: Any) -> Any:
    """Give plain values; numbers that are not finite as texts, for JSON has no others for them."""
    value = plain(value)
    if isinstance(value, dict):
        return {name: as_json(each) for name, each in value.items()}
    if isinstance(value, list):
        return [as_json(each) for each in value]
    if isinstance(value, float) and value - value != 0:
        return str(value)
    return value


class FaultGuard(Callback):
    """Skip a step whose loss, gradient or reward is not finite, and stop when it happens again.

    What is skipped changes no weight, no moment of the optimizer and no random number of any other
    step; it counts as a step, and the learning rate goes on. In supervised training that is an
    optimizer step; in PPO a minibatch whose loss or gradient is not finite, or the whole batch of
    rollouts where a reward is not. The rows go to ``faults/`` in the run folder, with the weights
    that met them: ``python replay.py RUN --fault NAME`` does it again.

    A single bad row costs one step. Where the weights are at fault the next step is as bad, and the
    run stops with the last good checkpoint kept.

    Args:
        skips: How many may be skipped within ``window``; 0 stops at the first.
        window: Steps (batches of rollouts in PPO) after which a skip is forgotten.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(self, skips: int = 1, window: int = 1000) -> None:
        if skips < 0 or window < 1:
            raise ValueError(
                f"faults: skips must be 0 or more and window 1 or more, got {skips} and {window}"
            )
        self.skips = skips
        self.window = window
        self.skipped: list[dict[str, Any]] = []
        self._logged = 0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Have the module ask here."""
        if isinstance(pl_module, SteppingModule):
            pl_module.on_fault = partial(self.decide, trainer)

    def decide(self, trainer: L.Trainer, fault: Fault) -> None:
        """Write a fault down, and return if it is to be skipped.

        Raises:
            FloatingPointError: If it is not.
        """
        recent = [each for each in self.skipped if fault.position - each["position"] < self.window]
        path = FaultFolder(trainer.default_root_dir).write(trainer, fault)
        if len(recent) >= self.skips:
            before = ", ".join(each["place"] for each in recent[-3:])
            again = f", and so it was at {before} (faults.skips {self.skips})" if recent else ""
            stop_at(fault, f"{again}. See {path}")
        self.skipped.append(
            {"place": fault.place, "position": fault.position, "unit": fault.unit,
             "what": fault.what, "rows": list(fault.ids)}
        )  # fmt: skip
        left = self.skips - len(recent) - 1
        log.warning(
            "%s: the %s is skipped, see %s. The run stops at the next but %d within %d",
            fault, fault.unit, path, left, self.window,
        )  # fmt: skip

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Log how many were skipped up to now, where one more was."""
        if len(self.skipped) > self._logged:
            self._logged = len(self.skipped)
            step = trainer.fit_loop.epoch_loop._batches_that_stepped
            for logger in trainer.loggers:
                logger.log_metrics({"train/skipped": float(self._logged)}, step=step)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record what was skipped in summary.json, if anything was."""
        if self.skipped and trainer.is_global_zero:
            RunFolder(trainer.default_root_dir).update_summary(skipped=self.skipped)

    def state_dict(self) -> dict[str, Any]:
        """Give what was skipped."""
        return {"skipped": list(self.skipped)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it up again."""
        self.skipped = list(state_dict["skipped"])
        self._logged = len(self.skipped)
