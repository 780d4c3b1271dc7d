"""Check what a command would read from and write to its run folder, and the Trainer's numbers."""

import logging
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_only

from callbacks.checkpoint_io import (
    choose_checkpoint,
    describe_checkpoint,
    find_checkpoint_problem,
)
from common.exits import suggest
from common.run_folder import RunFolder
from lightning_modules.base import BaseModule
from metrics.faithfulness import CHECKS
from metrics.rouge_scores import KEYS
from metrics.text_statistics import STATISTICS

logger = logging.getLogger(__name__)


def find_folder_problems(command: str | None, settings: Any, folder: RunFolder) -> list[str]:
    """List what forbids a command to write to its run folder.

    Args:
        command: Of fit, validate, test, predict.
        settings: All settings of the command.
        folder: The run folder.
    """
    if settings.resume and (command != "fit" or settings.overwrite):
        return ["--resume continues a fit; it excludes --overwrite true and the other commands"]
    if not is_first_rank():  # rank 0 has looked before it started the others, and may have written
        return []
    if problem := find_write_problem(folder.path):
        return [problem]
    if command == "fit":
        if settings.overwrite:
            return [
                f"--overwrite true would delete {name}, which this run starts from; choose another "
                "folder with --run_dir"
                for name in find_inputs_in(settings, folder)
            ]
        if folder.holds_run() and not settings.resume:
            return [
                f"run folder {folder.path} holds another run; choose another with --run_dir, "
                "continue the run with --resume auto, or replace it with --overwrite true"
            ]
    elif command != "validate" and folder.predictions.exists() and not settings.overwrite:
        return [
            f"{folder.predictions} holds the results of an earlier test; replace them with "
            "--overwrite true, or choose another folder with --run_dir"
        ]
    return []


def find_write_problem(folder: Path) -> str | None:
    """Explain why a folder cannot be written, or return None; leaves nothing behind."""
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return f"--run_dir {folder} cannot be written ({error.strerror}); choose another folder"
    finally:
        for path in created:
            with suppress(OSError):
                path.rmdir()


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
        if not path.exists():
            return [f"--ckpt_path {path}: there is no such file"]
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


def find_inputs_in(settings: Any, folder: RunFolder) -> list[str]:
    """List the models that a fit reads from the run folder that it would replace."""
    model = settings.model.init_args
    roles = ("backbone", "adapter", "reward_model")
    names = [settings.ckpt_path, *(model.get(role) for role in roles)]
    entries = [entry.resolve() for entry in folder.entries]
    return [
        name
        for name in names
        if name and any(Path(name).resolve().is_relative_to(entry) for entry in entries)
    ]


def find_trainer_problems(trainer: Any) -> list[str]:
    """List settings that the Trainer accepts although they cannot work."""
    problems = []
    if trainer.fast_dev_run:
        problems.append(
            "trainer.fast_dev_run writes no checkpoint, log or config; for a few batches of "
            "everything add --config configs/overlays/debug.yaml"
        )
    least = {"accumulate_grad_batches": 1, "gradient_clip_val": 0, "check_val_every_n_epoch": 1}
    for name, low in least.items():
        value = trainer.get(name)
        if isinstance(value, int | float) and not value >= low:
            problems.append(f"trainer.{name} must be {low} or more, got {value}")
    if trainer.val_check_interval == 0:
        problems.append(
            "trainer.val_check_interval must be above 0; to skip validation set "
            "trainer.limit_val_batches to 0"
        )
    return problems


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
    if not is_online or not is_first_rank() or wandb.login(prompt=False, verify=False):
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


def is_first_rank() -> bool:
    """Return whether this is rank 0."""
    return getattr(rank_zero_only, "rank", 0) == 0
