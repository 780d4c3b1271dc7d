"""Choose the weights a command starts from, and check settings that belong together."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alignsum.early_check import explain_untrained, find_trained
from callbacks.checkpoint_io import (
    choose_checkpoint,
    describe_checkpoint,
    find_checkpoint_problem,
)
from common.exits import is_first_process
from common.run_folder import RunFolder
from lightning_modules.base import BaseModule

logger = logging.getLogger(__name__)


def choose_weights(
    command: str | None, settings: Any, folder: RunFolder, model_type: type[BaseModule]
) -> list[str]:
    """Set `ckpt_path` to the checkpoint that the command starts from; list what forbids that."""
    if command == "fit" and settings.resume:
        path, problems = choose_checkpoint(settings.resume, folder.checkpoints)
        if path is None and settings.resume == "auto" and folder.has_only_begun():
            logger.info("There is no checkpoint in %s yet: the run starts again", folder.path)
            settings.resume, settings.overwrite = None, True
            return []
        if path is None:
            remedy = "" if settings.resume == "auto" else "; --resume auto takes the newest one"
            return [f"--resume {settings.resume}: {'; '.join(problems)}{remedy}"]
        for problem in problems:
            logger.warning("%s; resuming from %s instead", problem, path)
        logger.info("Resuming from %s", describe_checkpoint(path))
        settings.ckpt_path = str(path)
        return []
    if settings.ckpt_path:
        path = Path(settings.ckpt_path)
        if path.is_dir() and not (path / ".metadata").exists():
            return [f"--ckpt_path {path} is a folder without a sharded checkpoint; name a .ckpt"]
        damage = find_checkpoint_problem(path) if path.is_file() else None
        return [damage] if damage else []
    if command == "fit":
        return []
    settings.ckpt_path = find_trained(folder)
    can_start = settings.ckpt_path or not model_type.needs_training
    return [] if can_start else [explain_untrained(folder)]


def find_login_problem(loggers: Sequence[Any]) -> str | None:
    """Explain that Weights & Biases is to log online and there is no login, or return None.

    Args:
        loggers: Settings of the Trainer's loggers.
    """
    used = [each for each in loggers if str(each.get("class_path")).endswith("WandbLogger")]
    if not any(not each.get("init_args", {}).get("offline") for each in used):
        return None
    import wandb  # imported late, because few runs use it

    is_online = wandb.setup().settings.mode == "online"
    if not is_online or not is_first_process() or wandb.login(prompt=False, verify=False):
        return None
    return "Weights & Biases has no login: run `wandb login`, or set WANDB_MODE=offline"


def warn_of_minibatches(settings: Any) -> None:
    """Warn if PPO's minibatches are larger than its batches of rollouts."""
    ppo = settings.model.init_args.get("ppo")
    if ppo is None or not hasattr(ppo, "minibatch_size"):
        return
    rollouts = settings.data.init_args.batch_size * ppo.samples
    if ppo.minibatch_size > rollouts:
        logger.warning(
            "model.ppo.minibatch_size is %d, but a batch has %d rollouts (data.batch_size x "
            "model.ppo.samples): each epoch is one step", ppo.minibatch_size, rollouts,
        )  # fmt: skip
