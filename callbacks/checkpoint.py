"""Checkpoints: best.ckpt to test and export, last.ckpt to resume from exactly."""

import os
import time
import warnings
from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn

from callbacks.checkpoint_io import RESUME
from callbacks.loggers import RunCSVLogger
from callbacks.signals import GracefulStop
from common.run_folder import PARTIAL, RunFolder

NEXT = ".next.ckpt"
"""A checkpoint of a step that Lightning has not finished yet; never resumed from."""


class RunCheckpoint(ModelCheckpoint):
    """Keep the best checkpoint, and the last two that a killed run can resume from exactly.

    ``best.ckpt`` is Lightning's own: written after a validation that improved ``monitor``.
    ``last.ckpt`` is written after every validation and epoch, every ``every_n_train_steps`` or
    ``every_minutes``, and when a signal stops the run; the one before stays as ``previous.ckpt``.

    Lightning restores its loops exactly from three places only: the end of a validation, the end of
    an epoch, and the end of an optimizer step that neither of them follows. So after a step the
    checkpoint is written as ``.next.ckpt``, and renamed when the next batch starts: by then the
    step's metrics are in metrics.csv and no validation was due. A validation or the end of the
    epoch discards it and writes its own.

    A resumed run removes the rows of metrics.csv that were written after its checkpoint, because it
    writes them again.

    Args:
        monitor: Validation metric of the best checkpoint; None keeps no ``best.ckpt``.
        mode: Whether more of the metric is better.
        every_n_train_steps: Optimizer steps between two checkpoints.
        every_minutes: Minutes between two checkpoints, if no other reason comes first.
        dirpath: Folder of the checkpoints; the run folder's ``checkpoints`` if None.
    """

    def __init__(
        self,
        monitor: str | None = "val/rougeL",
        mode: Literal["min", "max"] = "max",
        every_n_train_steps: int | None = None,
        every_minutes: float | None = 10.0,
        dirpath: str | None = None,
    ) -> None:
        super().__init__(
            dirpath,
            "best",
            monitor,
            save_top_k=0 if monitor is None else 1,
            mode=mode,
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )
        self.every_steps = every_n_train_steps
        self.every_minutes = every_minutes
        self._saved_step = 0
        self._saved_time = 0.0
        self._between_steps = True
        self._overdue = False
        self._pending = False

    @property
    def state_key(self) -> str:
        """Identify the best score by its metric alone; other settings may change on resuming."""
        return f"RunCheckpoint(monitor={self.monitor!r}, mode={self.mode!r})"

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Remove what a killed write left behind."""
        self.folder = Path(self.dirpath or RunFolder(trainer.default_root_dir).checkpoints)
        self.dirpath = str(self.folder)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not")
            super().setup(trainer, pl_module, stage)
        if stage == "fit" and trainer.is_global_zero:
            for leftover in (*self.folder.glob(f".*{PARTIAL}"), self.folder / NEXT):
                leftover.unlink(missing_ok=True)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score, in the folder where the files are now."""
        best, score = str(self.folder / "best.ckpt"), state_dict["best_model_score"]
        if state_dict["best_model_path"]:
            names = ("best_model_path", "kth_best_model_path")
            state_dict = state_dict | dict.fromkeys(names, best) | {"best_k_models": {best: score}}
        super().load_state_dict(state_dict | {"dirpath": self.dirpath, "last_model_path": ""})

    # When to save -------------------------------------------------------------------------------

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock; the checkpoint that was resumed from is not written again."""
        self._saved_time, self._saved_step = time.monotonic(), trainer.global_step

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Accept the checkpoint of the step before, which is complete now."""
        self._accept(trainer)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Write a checkpoint after an optimizer step, if one is due."""
        accumulate = trainer.accumulate_grad_batches
        self._between_steps = (batch_idx + 1) % accumulate == 0 or trainer.is_last_batch
        if self._between_steps and self._is_due(trainer):
            self._write(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Discard the checkpoint of the step before, which does not have this validation."""
        self._discard(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save after a validation; after one within an optimizer step, when that step ends."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        super().on_validation_end(trainer, pl_module)  # best.ckpt
        if self._between_steps:
            self._save(trainer)
        else:
            self._overdue = True

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save after an epoch that did not end with a validation."""
        if not trainer.is_last_batch:  # max_steps or a monitor ended the run within the epoch
            self._accept(trainer)
            return
        self._discard(trainer)
        if trainer.max_steps == -1:  # under max_steps Lightning would count the epoch twice
            self._save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the end of the training."""
        self._discard(trainer)
        self._save(trainer)

    def _is_due(self, trainer: L.Trainer) -> bool:
        step, saved = trainer.global_step, self._saved_step
        if step == saved:
            return False
        stops = any(isinstance(c, GracefulStop) and c.requested for c in trainer.callbacks)  # type: ignore[attr-defined]
        if self._overdue or stops or 0 <= trainer.max_steps <= step:
            return True
        if self.every_steps and step // self.every_steps > saved // self.every_steps:
            return True
        passed = time.monotonic() - self._saved_time
        is_time = bool(self.every_minutes) and passed >= 60 * self.every_minutes  # type: ignore[operator]
        return bool(trainer.strategy.broadcast(is_time))

    # Files --------------------------------------------------------------------------------------

    def _save(self, trainer: L.Trainer) -> None:
        if trainer.global_step != self._saved_step:
            self._write(trainer)
            self._accept(trainer)

    def _write(self, trainer: L.Trainer) -> None:
        trainer.save_checkpoint(self.folder / NEXT)
        self._saved_step, self._saved_time = trainer.global_step, time.monotonic()
        self._pending, self._overdue = True, False

    def _accept(self, trainer: L.Trainer) -> None:
        if self._pending and trainer.is_global_zero:
            last = self.folder / "last.ckpt"
            if last.exists():
                os.replace(last, self.folder / "previous.ckpt")
            os.replace(self.folder / NEXT, last)
        self._pending = False

    def _discard(self, trainer: L.Trainer) -> None:
        if self._pending:
            self._pending, self._saved_step = False, -1
            if trainer.is_global_zero:
                (self.folder / NEXT).unlink()

    # Resuming -----------------------------------------------------------------------------------

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Note whether the run is between two optimizer steps, and the rows of metrics.csv."""
        loggers = [each for each in trainer.loggers if isinstance(each, RunCSVLogger)]
        rows = [len(each.rows) for each in loggers if trainer.is_global_zero]
        checkpoint[RESUME] = {"exact": self._between_steps, "rows": rows}

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Remove what was logged after the checkpoint, when a fit resumes from it."""
        if trainer.state.fn == TrainerFn.FITTING:
            loggers = [each for each in trainer.loggers if isinstance(each, RunCSVLogger)]
            saved = checkpoint.get(RESUME, {"rows": []})["rows"]
            for logger, rows in zip(loggers, saved, strict=False):
                logger.rewind(rows, checkpoint["global_step"])
