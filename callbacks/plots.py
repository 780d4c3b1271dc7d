"""plots/*.png of the run folder."""

import lightning as L
from lightning.pytorch.callbacks import Callback

from common.run_folder import RunFolder
from reporting.run_plots import draw_run


class PlotCallback(Callback):
    """Draw a run from its files when its fit or its test ends."""

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw the curves."""
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.save()
            draw_run(RunFolder(trainer.default_root_dir))

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw the scores of the examples."""
        if trainer.is_global_zero:
            draw_run(RunFolder(trainer.default_root_dir))
