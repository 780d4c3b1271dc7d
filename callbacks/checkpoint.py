"""best.ckpt and last.ckpt: what a run can be tested with, and what it can go on from."""

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint


class RunCheckpoint(ModelCheckpoint):
    """A ModelCheckpoint that writes ``last.ckpt``, and no other, when a run breaks off.

    Lightning's own writes the weights at hand to the best checkpoint's file too, since here that
    has a fixed name: an interrupted run would lose its best weights to later ones.
    """

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Keep what there is when an error or a signal ends the fit after its first step."""
        if self.save_last and self._should_save_on_exception(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
