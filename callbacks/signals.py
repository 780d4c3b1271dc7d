"""SIGTERM and Ctrl-C: finish the step, save a checkpoint, exit with 128 + signal."""

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn

from common.exits import StoppedBySignal
from common.run_folder import RunFolder


class GracefulStop(Callback):
    """End a fit after the current optimizer step when SIGTERM or SIGINT arrives.

    In PPO that is after the current batch of rollouts. A validation is finished first, because
    Lightning cannot resume before one; a second Ctrl-C ends the run at once. All ranks agree after
    each step, so it is enough if one of them receives the signal. Outside of training a signal ends
    the run at once.
    """

    def __init__(self) -> None:
        self.requested = 0
        """Number of the signal on which all ranks have agreed; 0 if there is none."""
        self._received = 0
        self._defers = False
        self._trains = True
        self._checkpoints: Path | None = None

    def _install(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        """Replace Lightning's handlers; the Trainer restores the original ones at its end."""
        self._trains = trainer.state.fn == TrainerFn.FITTING
        self._checkpoints = RunFolder(trainer.default_root_dir).checkpoints
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._defers:
            raise StoppedBySignal(number, self._trains, self._checkpoints)
        if self._received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._received = self._received or number
        # No logging here: the signal may have interrupted a log call.

    on_test_start = on_predict_start = _install

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Handle signals from here on, also in the sanity check and in `validate`."""
        if not self._defers:
            self._install(trainer)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Handle signals from here on, and finish steps first."""
        self._install(trainer)
        self._received = self.requested = 0
        self._defers = True

    def agree(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        """Agree with the other ranks, so that RunCheckpoint saves this step on all of them."""
        self.requested = self._received
        if trainer.world_size > 1:
            mine = torch.tensor(self._received, device=trainer.strategy.root_device)
            self.requested = int(trainer.strategy.reduce(mine, reduce_op="max"))

    on_train_batch_end = on_train_epoch_end = on_train_end = agree

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """End the run between two optimizer steps."""
        if self.requested and batch_idx % trainer.accumulate_grad_batches == 0:
            # Lightning calls checkpoints last; the one of the step before has to be complete first.
            for checkpoint in trainer.checkpoint_callbacks:
                checkpoint.on_train_batch_start(trainer, pl_module, batch, batch_idx)
            self._stop()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Agree with the other ranks after a validation too."""
        if self._defers:
            self.agree(trainer)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """End the run before the export, once the last checkpoint is written."""
        self._defers = False
        if self.requested:
            self._stop()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Handle signals at once from here on."""
        self._defers = False

    def _stop(self) -> None:
        self._defers = False
        raise StoppedBySignal(self.requested, self._trains, self._checkpoints)
