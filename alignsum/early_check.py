"""Check a command's run folder, starting point and device before the libraries are imported."""

import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from alignsum.signatures import find_flag
from common.exits import is_first_process, suggest
from common.run_folder import RunFolder, expand
from metrics.faithfulness import CHECKS
from metrics.rouge_scores import KEYS
from metrics.text_statistics import STATISTICS

MODELS = ("model.backbone", "model.adapter", "model.reward_model", "toxicity.model")
"""Settings that name a model."""


def choose_folder(run_dir: Any, config: Path | None, model: str) -> RunFolder:
    """Return the run folder: the given one, or ``runs/<name of the first config>``."""
    name = config.stem if config else model.rsplit(".", 1)[-1].lower()
    return RunFolder(expand(str(run_dir)) if run_dir else Path("runs") / name)


def find_problem(command: str, settings: Mapping[str, Any], folder: RunFolder) -> str | None:
    """Explain why a command cannot start, or return None.

    Args:
        command: Of fit, validate, test, predict.
        settings: Values by dotted name.
        folder: The run folder.
    """
    model = str(settings.get("model.class_path") or settings.get("model")).rpartition(".")[2]
    return (
        find_folder_problem(command, settings, folder)
        or find_weights_problem(command, settings, folder, model)
        or find_monitor_problem(command, settings, model)
        or find_device_problem(settings)
    )


def find_folder_problem(command: str, settings: Mapping[str, Any], folder: RunFolder) -> str | None:
    """Explain why a command cannot use its run folder, or return None."""
    resume, overwrite = settings.get("resume"), settings.get("overwrite")
    for option in ("run_dir", "resume", "ckpt_path", "data.source", *MODELS):
        if settings.get(option) == "":
            return f"--{option} is empty; is a variable of your shell not set?"
    if resume and (command != "fit" or overwrite):
        return "--resume continues a fit; it excludes --overwrite true and the other commands"
    start = settings.get("ckpt_path")
    if start and not expand(str(start)).exists():
        return f"--ckpt_path {start}: there is no such file"
    if not is_first_process():
        return None  # rank 0 has looked before it started the others, and may have written
    if problem := find_write_problem(folder.path):
        return problem
    if command == "fit":
        if overwrite and (name := find_input_in(settings, folder)):
            return (
                f"--overwrite true would delete {name}, which this run starts from; choose another "
                "folder with --run_dir"
            )
        if folder.holds_run() and not resume and not overwrite:
            return (
                f"run folder {folder.path} holds another run; choose another with --run_dir, "
                "continue the run with --resume auto, or replace it with --overwrite true"
            )
    elif command != "validate" and folder.predictions.exists() and not overwrite:
        return (
            f"{folder.predictions} holds the results of an earlier test; replace them with "
            "--overwrite true, or choose another folder with --run_dir"
        )
    return None


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


def find_input_in(settings: Mapping[str, Any], folder: RunFolder) -> str | None:
    """Return a model that a fit reads from the run folder that it would replace."""
    entries = [entry.resolve() for entry in folder.entries]
    for option in ("ckpt_path", *MODELS):
        name = settings.get(option)
        if name and any(expand(str(name)).resolve().is_relative_to(entry) for entry in entries):
            return str(name)
    return None


def find_trained(folder: RunFolder) -> str | None:
    """Return the checkpoint of a fit that the other commands read: the best one, or the last."""
    kept = [folder.checkpoints / f"{name}.ckpt" for name in ("best", "last")]
    return next((str(path) for path in kept if path.is_file()), None)


def explain_untrained(folder: RunFolder) -> str:
    """Say that a command has no weights to start from."""
    return (
        f"there is no trained model in {folder.path} (no {folder.checkpoints / 'best.ckpt'}); run "
        "`fit` with this --run_dir first, or choose a checkpoint with --ckpt_path"
    )


def find_weights_problem(
    command: str, settings: Mapping[str, Any], folder: RunFolder, model: str
) -> str | None:
    """Explain that a method of ours has not been trained yet, or return None."""
    needs_training = command != "fit" and find_flag(model, "needs_training")
    has_weights = settings.get("ckpt_path") or find_trained(folder)
    return explain_untrained(folder) if needs_training and not has_weights else None


def find_monitor_problem(command: str, settings: Mapping[str, Any], model: str) -> str | None:
    """Explain that a validation does not log what decides on the best checkpoint."""
    monitor, generates = settings.get("checkpoint.monitor"), find_flag(model, "generates")
    has_callbacks = any(name.startswith("trainer.callbacks") for name in settings)
    if command != "fit" or not monitor or has_callbacks or generates is None:
        return None  # callbacks and modules of others log what they like
    names = ["loss", "accuracy", "f1", "ece", "margin"]
    if generates:
        names += [*KEYS, *CHECKS, *STATISTICS, "toxicity", "toxic_share", "toxicity_std", "reward"]
    known = [f"val/{name}" for name in names]
    if monitor in known or not (close := suggest(str(monitor), known)):
        return None
    return f"checkpoint.monitor: no validation logs {monitor}{close}"


def find_device_problem(settings: Mapping[str, Any]) -> str | None:
    """Explain that a requested GPU is missing, or cores for the processes, or return None."""
    wanted, devices = settings.get("trainer.accelerator"), settings.get("trainer.devices")
    cores = os.cpu_count() or 1
    is_crowded = isinstance(devices, int) and devices > max(cores, 2)
    if wanted not in ("gpu", "cuda", "mps") and not is_crowded:
        return None
    import torch  # takes a second, Lightning three more

    if torch.accelerator.is_available() and wanted != "cpu":
        return None
    if is_crowded:
        return f"trainer.devices is {devices}, but here are no GPU and {cores} CPU core(s)"
    return f"trainer.accelerator is {wanted}, but torch finds no GPU; `auto` takes what there is"
