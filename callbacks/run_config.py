"""config.yaml: the settings that a run was started with."""

import difflib
import logging
import re
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.trainer.states import TrainerFn

from common.run_folder import RunFolder, write_text
from common.versions import redact
from lightning_modules.policies.adapters import POLICY

logger = logging.getLogger(__name__)


class RunConfig(SaveConfigCallback):
    """Save the configuration: ``config.yaml``, or ``config.test.yaml`` beside that of a fit.

    Lightning saves it before the model is built. This callback saves it, and removes what is to be
    overwritten, once everything is built: a command that is refused changes nothing. The options of
    the call itself (``--overwrite``, ``--resume``, ``--ckpt_path``) are not saved.

    Args:
        *args: Parser and settings; see ``SaveConfigCallback``.
        fits: Whether the command is a fit, which may validate first.
        **kwargs: Further arguments of ``SaveConfigCallback``.
    """

    def __init__(self, *args: Any, fits: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fits = fits

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Wait for the start."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove an earlier run if told to, and save as ``config.yaml``."""
        folder = RunFolder(trainer.default_root_dir)
        if self.config.overwrite and trainer.is_global_zero:
            folder.clear()
        self._save(trainer, pl_module, "fit")
        if trainer.is_global_zero:
            folder.checkpoints.mkdir(exist_ok=True)  # every run folder has the same entries

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save before a validation that is not within a fit."""
        if trainer.state.fn == TrainerFn.VALIDATING and self.fits:
            self.on_fit_start(trainer, pl_module)
        elif trainer.state.fn == TrainerFn.VALIDATING:
            self._save(trainer, pl_module, "validate")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove earlier predictions if told to, and save under a free name."""
        stage = "test" if trainer.state.fn == TrainerFn.TESTING else "predict"
        if self.config.overwrite and trainer.is_global_zero:
            RunFolder(trainer.default_root_dir).predictions.unlink(missing_ok=True)
        self._save(trainer, pl_module, stage)

    on_predict_start = on_test_start

    def _save(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit" and RunFolder(trainer.default_root_dir).config.exists():
            self.config_filename = f"config.{stage}.yaml"
        self.config = self.config.clone()
        for name, default in (("overwrite", False), ("resume", None), ("ckpt_path", None)):
            self.config[name] = default
        record_adapter(self.config.model.init_args, pl_module)
        super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the file, without keys and tokens."""
        text = redact(self.parser.dump(self.config, skip_none=False))
        path = Path(trainer.default_root_dir, self.config_filename)
        if stage == "fit" and path.is_file():
            before = path.read_text(encoding="utf-8").splitlines()
            lines = difflib.unified_diff(before, text.splitlines(), n=0, lineterm="")
            if changes := [line for line in lines if re.match(r"[-+] *\w", line)]:
                logger.warning("The run continues with changed settings:\n%s", "\n".join(changes))
        write_text(path, text)


ADAPTER_SETTINGS = {
    "r": "r",
    "alpha": "lora_alpha",
    "target_modules": "target_modules",
    "use_dora": "use_dora",
    "use_rslora": "use_rslora",
    "virtual_tokens": "num_virtual_tokens",
}
"""Settings that may be null, for those of a continued adapter or a default; PEFT's name of each."""


def record_adapter(init_args: Any, pl_module: Any) -> None:
    """Fill in the settings of the adapter that were left at null, as they are in effect.

    Args:
        init_args: Settings of the module; changed in place.
        pl_module: The module, with its model.
    """
    adapters = getattr(getattr(pl_module, "model", None), "peft_config", None)
    if not adapters:
        return
    effective = adapters[POLICY]
    settings = getattr(init_args.get("policy"), "init_args", init_args)
    for name, known_as in ADAPTER_SETTINGS.items():
        if name in settings and settings[name] is None and hasattr(effective, known_as):
            value = getattr(effective, known_as)
            settings[name] = sorted(value) if isinstance(value, set) else value
