"""config.yaml: the settings that a run was started with."""

import logging
from pathlib import Path

from lightning import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.trainer.states import TrainerFn

from alignsum.overlays import find_changes
from common.redaction import redact_yaml
from common.run_folder import RunFolder, write_text

logger = logging.getLogger(__name__)


class RunConfig(SaveConfigCallback):
    """Save the whole configuration: ``config.yaml``, or ``config.test.yaml`` beside a fit's.

    Lightning saves it before the model is built; here it is saved once that went well, and what
    was to be overwritten goes only then: a command that is refused changes nothing. The options of
    this one call (``--overwrite``, ``--resume`` and the checkpoint) are not saved: who starts from
    the file later did not ask for them.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Wait for the start."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make room where told to, and save as ``config.yaml``."""
        if self.config.overwrite and trainer.is_global_zero:
            RunFolder(trainer.default_root_dir).clear()
        self._save(trainer, pl_module, "fit")
        if trainer.is_global_zero:
            # Also where nothing is trained: every run folder has the same entries.
            RunFolder(trainer.default_root_dir).checkpoints.mkdir(exist_ok=True)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, unless this validation is a part of a fit."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._save_beside(trainer, pl_module, "validate")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make room where told to, and save under a name that is free."""
        self._replace_predictions(trainer)
        self._save_beside(trainer, pl_module, "test")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make room where told to, and save under a name that is free."""
        self._replace_predictions(trainer)
        self._save_beside(trainer, pl_module, "predict")

    def _save_beside(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if RunFolder(trainer.default_root_dir).config.exists():
            self.config_filename = f"config.{stage}.yaml"
        self._save(trainer, pl_module, stage)

    def _replace_predictions(self, trainer: Trainer) -> None:
        if self.config.overwrite and trainer.is_global_zero:
            RunFolder(trainer.default_root_dir).predictions.unlink(missing_ok=True)

    def _save(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.config = self.config.clone()
        for name, default in (("overwrite", False), ("resume", None), ("ckpt_path", None)):
            self.config[name] = default
        super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the file, keys and tokens left out."""
        text = redact_yaml(self.parser.dump(self.config, skip_none=False))
        path = Path(trainer.default_root_dir, self.config_filename)
        if stage == "fit" and path.is_file() and (changes := find_changes(path, text)):
            logger.warning("The run goes on with other settings than it had: %s", changes)
        write_text(path, text)
