"""When to validate."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback


class ValidateAtStart(Callback):
    """Validate once before the first update, so that every curve starts where the run does.

    A Trainer's own first validation comes after some training, and a policy that has lost its way
    by then would be compared with itself. A resumed run does not start again.
    """

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Validate, in the way that the training loop does after a batch."""
        if trainer.global_step or trainer.current_epoch or not trainer.enable_validation:
            return
        loop: Any = trainer.fit_loop.epoch_loop.val_loop
        trainer.validating = True
        loop.run()
        trainer.training = True
