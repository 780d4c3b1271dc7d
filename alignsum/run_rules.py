"""Choose the weights a command starts from, and check settings that belong together."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from callbacks.checkpoint_io import (
    choose_checkpoint,
    describe_checkpoint,
    find_checkpoint_problem,
)
from common.exits import is_first_process, suggest
from common.run_folder import RunFolder
from lightning_modules.base import BaseModule
from metrics.faithfulness import CHECKS
from metrics.rouge_scores import KEYS
from metrics.text_statistics import STATISTICS

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
    kept = [folder.checkpoints / f"{name}.ckpt" for name in ("best", "last")]
    found = next((path for path in kept if path.is_file()), None)
    if found is not None:
        settings.ckpt_path = str(found)
        return []
    if not model_type.needs_training:
        return []
    return [
        f"there is no trained model in {folder.path} (no {kept[0]}); run `fit` with this --run_dir "
        "first, or choose a checkpoint with --ckpt_path"
    ]


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


def find_monitor_problem(
    command: str | None, settings: Any, model_type: type[BaseModule]
) -> str | None:
    """Explain that a validation does not log what decides on the best checkpoint."""
    monitor = settings.checkpoint.monitor
    is_ours = model_type.__module__.startswith("lightning_modules.")
    if command != "fit" or not monitor or settings.trainer.callbacks or not is_ours:
        return None  # callbacks and modules of others log what they like
    names = ["loss", "accuracy", "f1", "ece", "margin"]
    if model_type.generates:
        names += [*KEYS, *CHECKS, *STATISTICS, "toxicity", "toxic_share", "toxicity_std", "reward"]
    known = [f"val/{name}" for name in names]
    if monitor in known or not (close := suggest(monitor, known)):
        return None
    return f"checkpoint.monitor: no validation logs {monitor}{close}"
