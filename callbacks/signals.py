"""SIGTERM and Ctrl-C: finish the step, keep a checkpoint, end with a code that schedulers know."""

import logging
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

log = logging.getLogger(__name__)


class GracefulStop(Callback):
    """End a fit at the next place between two steps once SIGTERM or SIGINT has come.

    The step that is under way is finished (in PPO, the batch of rollouts); of a validation, the
    batch. All ranks agree before each step, so that it is enough for one of them to get the signal,
    and none is left waiting for the others. Lightning's own handler talks to the other ranks from
    within the signal, in the middle of whatever they were saying to each other.

    Before and after the training a signal ends the run at once, and so does a second Ctrl-C in it.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self._received = 0
        self._deferring = False
        self._trains = True
        self._checkpoints: Path | None = None

    def _install(self, trainer: L.Trainer) -> None:
        """Take the place of Lightning's handler; the Trainer gives the signals back at its end."""
        self._received = 0
        self._trains = trainer.state.fn == TrainerFn.FITTING
        self._checkpoints = RunFolder(trainer.default_root_dir).checkpoints
        if threading.current_thread() is threading.main_thread():
            for number in self.SIGNALS:
                signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._deferring:
            raise self._make_stop(number)
        if self._received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._received = self._received or number
        # No logging here: the signal may have come in the middle of it.

    # Where it may end ---------------------------------------------------------------------------

    def on_sanity_check_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listen from here on."""
        self._install(trainer)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listen from here on."""
        self._install(trainer)

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listen from here on."""
        self._install(trainer)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listen from here on, and finish steps first."""
        self._install(trainer)
        self._deferring = True

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """End before a step."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._end_if_told(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """End before a validation, which may take longer than there is."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._install(trainer)
        self._end_if_told(trainer)

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any
    ) -> None:
        """End within a validation, which a resumed run does again."""
        self._end_if_told(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """End before what comes after the training."""
        self._end_if_told(trainer)
        self._deferring = False

    def _end_if_told(self, trainer: L.Trainer) -> None:
        """End if any rank has got a signal.

        Raises:
            StoppedBySignal: On all ranks alike.
        """
        number = self._received
        if trainer.world_size > 1 and trainer.state.fn == TrainerFn.FITTING:
            mine = torch.tensor(number, device=trainer.strategy.root_device)
            number = int(trainer.strategy.reduce(mine, reduce_op="max"))
        if number:
            raise self._make_stop(number)

    def _make_stop(self, number: int) -> StoppedBySignal:
        return StoppedBySignal(number, self._trains, self._checkpoints)
