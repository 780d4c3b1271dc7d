"""Progress that is seen in a terminal and in a log file alike."""

import time
from typing import Any

import lightning as L
import rich
from lightning.pytorch.callbacks import RichProgressBar


class RunProgress(RichProgressBar):
    """Rich bars in a terminal; elsewhere (a pipe, a file, CI) a line every few seconds.

    Lightning's bar shows nothing at all until its end where stdout is no terminal.

    Args:
        every_seconds: Time between two lines where stdout is no terminal.
        refresh_rate: Refreshes of the bar a second in a terminal.
        leave: Leave the bar of a finished epoch in the terminal.
    """

    def __init__(
        self, every_seconds: float = 5.0, refresh_rate: int = 10, leave: bool = False
    ) -> None:
        super().__init__(refresh_rate=refresh_rate, leave=leave)
        if every_seconds <= 0:
            raise ValueError(f"RunProgress: every_seconds must be above 0, got {every_seconds}.")
        self.every_seconds = every_seconds
        self._lines = False
        self._started = 0.0
        self._spoke = 0.0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Choose between bars and lines."""
        super().setup(trainer, pl_module, stage)
        self._lines = trainer.is_global_zero and not rich.get_console().is_terminal
        if self._lines:
            self.disable()
        self._started = self._spoke = time.monotonic()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Say how far the epoch is."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._tick(self._epoch(), batch_idx, self.total_train_batches)

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Say how far the validation is."""
        super().on_validation_batch_end(
            trainer, pl_module, outputs, batch, batch_idx, dataloader_idx
        )
        self.has_dataloader_changed(dataloader_idx)
        name = (
            self.sanity_check_description
            if trainer.sanity_checking
            else self.validation_description
        )
        self._tick(name, batch_idx, self.total_val_batches_current_dataloader)

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Say how far the test is."""
        super().on_test_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
        self.has_dataloader_changed(dataloader_idx)
        self._tick(self.test_description, batch_idx, self.total_test_batches_current_dataloader)

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Say how far the prediction is."""
        super().on_predict_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
        self.has_dataloader_changed(dataloader_idx)
        self._tick(
            self.predict_description, batch_idx, self.total_predict_batches_current_dataloader
        )

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say what the validation found."""
        super().on_validation_end(trainer, pl_module)
        if self._lines and not trainer.sanity_checking:
            self._say(f"{self._epoch()} validated")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say that training is over."""
        super().on_train_end(trainer, pl_module)
        if self._lines:
            self._say(f"Trained {trainer.global_step} steps")

    def _epoch(self) -> str:
        last = self.trainer.max_epochs
        number = f"{self.trainer.current_epoch + 1}"
        return f"Epoch {number}/{last}" if last and last > 0 else f"Epoch {number}"

    def _tick(self, what: str, batch_idx: int, total: float) -> None:
        if self._lines and time.monotonic() - self._spoke >= self.every_seconds:
            self._say(f"{what} {batch_idx + 1}/{total}")

    def _say(self, what: str) -> None:
        self._spoke = time.monotonic()
        seconds = int(self._spoke - self._started)
        metrics = " ".join(
            f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
            for name, value in self.get_metrics(self.trainer, self.trainer.lightning_module).items()
        )
        line = f"[{seconds // 60:d}:{seconds % 60:02d}] {what} {metrics}".rstrip()
        rich.get_console().print(line, soft_wrap=True, markup=False, highlight=False)
