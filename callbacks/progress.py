"""Progress in a terminal and in log files."""

import time
from typing import Any

import lightning as L
import rich
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar


def make_progress_bar() -> ProgressBar:
    """Choose Lightning's Rich bar for a terminal, and log lines for a pipe, a file or CI."""
    if rich.get_console().is_terminal:
        return RichProgressBar(refresh_rate=10)
    return ProgressLines()


class ProgressLines(ProgressBar):
    """Print a line every few seconds, where a bar could not be drawn.

    Args:
        every_seconds: Time between two lines.
    """

    def __init__(self, every_seconds: float = 5.0) -> None:
        super().__init__()
        if every_seconds <= 0:
            raise ValueError(f"ProgressLines: every_seconds must be above 0, got {every_seconds}")
        self.every_seconds = every_seconds
        self._enabled = True
        self._started = self._last = 0.0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Start the clock."""
        super().setup(trainer, pl_module, stage)
        self._enabled = trainer.is_global_zero
        self._started = self._last = time.monotonic()

    def disable(self) -> None:
        """Print nothing from here on."""
        self._enabled = False

    def enable(self) -> None:
        """Print again."""
        self._enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print what the module prints by ``self.print``."""
        if self._enabled:
            rich.get_console().print(*args, soft_wrap=True, markup=False, highlight=False)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Print how far the epoch is."""
        self._tick(self._epoch, batch_idx, self.total_train_batches)

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Print how far the validation is."""
        self.has_dataloader_changed(dataloader_idx)
        name = "Sanity check" if trainer.sanity_checking else "Validation"
        self._tick(name, batch_idx, self.total_val_batches_current_dataloader)

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Print how far the test is."""
        self.has_dataloader_changed(dataloader_idx)
        self._tick("Test", batch_idx, self.total_test_batches_current_dataloader)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print what the validation measured."""
        if not trainer.sanity_checking:
            self._say(f"{self._epoch} validated")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print that the training is finished."""
        self._say(f"Trained {trainer.global_step} steps")

    @property
    def _epoch(self) -> str:
        last = self.trainer.max_epochs
        number = f"{self.trainer.current_epoch + 1}"
        return f"Epoch {number}/{last}" if last and last > 0 else f"Epoch {number}"

    def _tick(self, what: str, batch_idx: int, total: float) -> None:
        if time.monotonic() - self._last >= self.every_seconds:
            self._say(f"{what} {batch_idx + 1}/{total}")

    def _say(self, what: str) -> None:
        self._last = time.monotonic()
        seconds = int(self._last - self._started)
        metrics = self.get_metrics(self.trainer, self.trainer.lightning_module)
        values = (
            f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in metrics.items()
        )
        self.print(f"[{seconds // 60:d}:{seconds % 60:02d}] {what} {' '.join(values)}".rstrip())
