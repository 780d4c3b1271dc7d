"""End a fit that no longer improves."""

import logging
from typing import Any, Literal

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping

log = logging.getLogger(__name__)


class RunEarlyStopping(EarlyStopping):
    """Lightning's EarlyStopping on the metric of ``best.ckpt``; off unless ``patience`` is set.

    A run that it ended stays ended when it is resumed, unless with more patience.

    Args:
        patience: Validations without improvement to wait for; None never stops.
        min_delta: Smallest change that counts as an improvement.
        monitor: Validation metric; the CLI takes ``checkpoint.monitor``.
        mode: Whether more of it is better; the CLI takes ``checkpoint.mode``.

    Raises:
        ValueError: If there is no metric.
    """

    def __init__(
        self,
        patience: int | None = None,
        min_delta: float = 0.0,
        monitor: str | None = "val/rougeL",
        mode: Literal["min", "max"] = "max",
    ) -> None:
        if patience is not None and monitor is None:
            raise ValueError("early_stopping.patience needs a metric: set checkpoint.monitor")
        self.enabled = patience is not None
        super().__init__(
            monitor or "",
            min_delta,
            patience or 0,
            verbose=True,
            mode=mode,
            check_on_train_epoch_end=False,
        )

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare this validation with the best one."""
        if self.enabled:
            super().on_validation_end(trainer, pl_module)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop at once if the run had been stopped before it was resumed."""
        if self.enabled and self.wait_count >= self.patience:
            log.info("Early stopping had ended this run; a higher patience lets it continue")
            trainer.should_stop = True

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the count; the patience is the one of the settings."""
        super().load_state_dict(state_dict | {"patience": self.patience})
