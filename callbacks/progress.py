"""Progress as plain lines, for logs and pipes."""

from typing import Any

import lightning as L
import rich
from lightning.pytorch.callbacks import ProgressBar


class LineProgress(ProgressBar):
    """Print one line every few batches and after each epoch and validation, on rank 0.

    Without a terminal a bar would write over itself within one endless line.

    Args:
        every: Batches between two lines.
    """

    def __init__(self, every: int = 50) -> None:
        super().__init__()
        self.every = every
        self._is_enabled = True

    def disable(self) -> None:
        """Print nothing, as on the other ranks."""
        self._is_enabled = False

    def enable(self) -> None:
        """Print again."""
        self._is_enabled = True

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        """Show the batch."""
        place = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}, batch"
        self._show(place, index + 1, self.total_train_batches, self.get_metrics(trainer, pl_module))

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show what was measured."""
        if not trainer.sanity_checking:
            metrics = self.get_metrics(trainer, pl_module)
            self._show(f"validated at step {trainer.global_step}", 0, 0, metrics)

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Show the batch."""
        stage = "test" if trainer.testing else "predict"
        totals = trainer.num_test_batches if trainer.testing else trainer.num_predict_batches
        self._show(f"{stage} batch", batch_idx + 1, totals[dataloader_idx], {})

    on_predict_batch_end = on_test_batch_end

    def _show(self, place: str, number: int, total: float, metrics: dict[str, Any]) -> None:
        if not self._is_enabled or (number % self.every and number != total):
            return
        shown = {name: value for name, value in metrics.items() if name != "v_num"}
        words = [f"{name} {value:.4g}" for name, value in shown.items() if value == value]
        place = f"{place} {number}/{total:g}" if number else place
        line = f"{place}: {', '.join(words)}" if words else place
        rich.get_console().print(line, soft_wrap=True, markup=False, highlight=False)
