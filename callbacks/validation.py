"""When to validate."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback


class ValidateAtStart(Callback):
    """Validate once before the first update, so that every curve starts where the run does.

    A Trainer's own first validation comes after some training, and a policy that has lost its way
    by then would be compared with itself. A resumed run does not start again, also where it broke
    off before its first step.
    """

    _is_done = False

    def state_dict(self) -> dict[str, Any]:
        """Say whether the start is behind the run."""
        return {"is_done": self._is_done}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up whether it is."""
        self._is_done = state_dict["is_done"]

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note that it is, before a checkpoint is written of it."""
        self._is_done = self._is_done or not trainer.sanity_checking

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Validate, in the way that the training loop does after a batch."""
        has_begun = self._is_done or trainer.global_step or trainer.current_epoch
        if has_begun or not trainer.enable_validation:
            return
        loop: Any = trainer.fit_loop.epoch_loop.val_loop
        trainer.validating = True
        loop.run()
        trainer.training = True
