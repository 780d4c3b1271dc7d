"""Check what a command reads from and writes to its run folder, before torch is imported."""

import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from common.exits import is_first_process
from common.run_folder import RunFolder, expand


def choose_folder(run_dir: Any, config: Path | None, model: str) -> RunFolder:
    """Return the run folder: the given one, or ``runs/<name of the first config>``."""
    name = config.stem if config else model.rsplit(".", 1)[-1].lower()
    return RunFolder(expand(str(run_dir)) if run_dir else Path("runs") / name)


def find_folder_problem(command: str, settings: Mapping[str, Any], folder: RunFolder) -> str | None:
    """Explain why a command cannot use its run folder, or return None.

    Args:
        command: Of fit, validate, test, predict.
        settings: Values by dotted name.
        folder: The run folder.
    """
    resume, overwrite = settings.get("resume"), settings.get("overwrite")
    for option in ("run_dir", "resume", "ckpt_path"):
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
    for option in ("ckpt_path", "model.backbone", "model.adapter", "model.reward_model"):
        name = settings.get(option)
        if name and any(expand(str(name)).resolve().is_relative_to(entry) for entry in entries):
            return str(name)
    return None
