"""Weights & Biases without secrets in its metadata, and with one message if it cannot start."""

from typing import Any

import wandb
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment


class RunWandbLogger(WandbLogger):
    """Lightning's logger, without the metadata in which W&B records the command line.

    Args:
        **kwargs: See Lightning's ``WandbLogger``.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(settings=wandb.Settings(x_disable_meta=True), **kwargs)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run; starts it on first use.

        Raises:
            ValueError: If W&B cannot start, with the remedy.
        """
        try:
            return super().experiment
        except wandb.Error as error:
            raise ValueError(
                f"Weights & Biases did not start ({error}); run `wandb login`, or set "
                "WANDB_MODE=offline"
            ) from error
