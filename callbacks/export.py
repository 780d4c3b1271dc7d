"""Export a finished run as a Hugging Face folder."""

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import WandbLogger

from callbacks.model_card import write_card
from common import hub
from common.run_folder import RunFolder

log = logging.getLogger(__name__)


class ExportCallback(Callback):
    """Write `export/` at the end of a fit, from the best checkpoint if there is one.

    The module keeps the exported weights, so that a test in the same process tests the export. A
    test writes `export/` only if it is missing. The folder is renamed into place when complete, and
    one of an earlier part of the run is deleted last. With a logger of Weights & Biases it becomes
    an artifact too.
    """

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Load the best checkpoint's weights and export them."""
        source = load_best(trainer, pl_module)
        self._export(trainer, pl_module, source)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Export the tested weights if there is no export yet; add the scores to its card."""
        folder = RunFolder(trainer.default_root_dir)
        if not trainer.strategy.broadcast(folder.export.exists()):
            self._export(trainer, pl_module, "the weights that were tested")
        elif trainer.is_global_zero:
            write_card(folder)

    def _export(self, trainer: L.Trainer, pl_module: Any, source: str) -> None:
        """Write the folder on rank 0; the others take part in gathering sharded weights."""
        folder = RunFolder(trainer.default_root_dir)
        partial = folder.path / ".export.partial"
        if not trainer.is_global_zero:
            pl_module.export(partial)
            return
        shutil.rmtree(partial, ignore_errors=True)
        folder.path.mkdir(parents=True, exist_ok=True)
        with hub.writing(partial):
            about: dict[str, Any] = pl_module.export(partial)
        for file in partial.iterdir():
            if file.is_file():
                file.chmod(0o644)  # safetensors makes its files private
        old = folder.path / ".export.old"
        shutil.rmtree(old, ignore_errors=True)
        if folder.export.exists():
            os.replace(folder.export, old)
        os.replace(partial, folder.export)
        shutil.rmtree(old, ignore_errors=True)
        if about:
            folder.update_summary(**about)
        write_card(folder)
        log.info("Exported %s to %s", source, folder.export)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                name = f"{folder.path.name}-export"
                logger.experiment.log_artifact(str(folder.export), name=name, type="model")


def load_best(trainer: L.Trainer, pl_module: L.LightningModule) -> str:
    """Load the best checkpoint's weights into the module, as Lightning does before a test.

    Returns:
        A description of the weights that the module has now.
    """
    callback: Any = trainer.checkpoint_callback
    path = getattr(callback, "best_model_path", "")
    if not path:
        return "the last weights"
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    pl_module.on_load_checkpoint(checkpoint)
    trainer.strategy.load_model_state_dict(checkpoint, strict=pl_module.strict_loading)
    monitor, score = callback.monitor, callback.best_model_score
    return f"the weights of the best checkpoint, {Path(path).name} ({monitor} {float(score):.4f})"
