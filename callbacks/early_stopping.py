"""Early stopping: end a fit that no longer gets better."""

import logging
from typing import Any, Literal

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping

log = logging.getLogger(__name__)


class RunEarlyStopping(EarlyStopping):
    """End the fit when so many validations in a row were not better than the best one; off if None.

    It goes by the metric that ``best.ckpt`` goes by, ``checkpoint.monitor``. Otherwise than
    Lightning's own it looks after each validation, holds when a run that it ended is resumed, and
    takes the patience of the settings then: a higher one lets the run go on.

    Args:
        patience: Validations without an improvement to wait for; None never stops.
        min_delta: What a metric has to change by to be better.
        monitor: The metric; the command line sets it.
        mode: Whether more of it is better; the command line sets it.

    Raises:
        ValueError: If a setting is out of range, or there is no metric to go by.
    """

    def __init__(
        self,
        patience: int | None = None,
        min_delta: float = 0.0,
        monitor: str | None = "val/rougeL",
        mode: Literal["min", "max"] = "max",
    ) -> None:
        if patience is not None and (patience < 1 or min_delta < 0 or monitor is None):
            raise ValueError(
                "early_stopping: patience must be 1 or more, min_delta 0 or more, and there must "
                "be a metric to go by (checkpoint.monitor); got "
                f"patience {patience}, min_delta {min_delta}, monitor {monitor}"
            )
        super().__init__(
            monitor or "",
            min_delta,
            patience or 0,
            verbose=True,
            mode=mode,
            check_on_train_epoch_end=False,
        )
        self.enabled = patience is not None

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look whether this validation was better."""
        if self.enabled:
            super().on_validation_end(trainer, pl_module)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop at once where the run that is resumed had been stopped."""
        if self.enabled and self.wait_count >= self.patience:
            log.info("Early stopping had ended this run; a higher patience lets it go on")
            trainer.should_stop = True

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the count; the patience is that of the settings."""
        super().load_state_dict(state_dict | {"patience": self.patience})
