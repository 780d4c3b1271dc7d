"""Checkpoint files: written whole or not at all, found, checked and chosen among."""

import pickle
import shutil
import zipfile
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO

from common.run_folder import replacing


class CheckpointError(OSError):
    """A checkpoint could not be written."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint whole or not at all: what was there before stays until it is complete.

    Lightning's own writes to the system's folder for temporary files and moves it from there, which
    between two disks is a copy that can break off.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint.

        Raises:
            CheckpointError: If it cannot be written, with the cause.
        """
        try:
            with replacing(Path(path)) as partial:
                torch.save(checkpoint, partial)
        except (OSError, RuntimeError) as error:  # torch's writer raises the latter
            free = shutil.disk_usage(Path(path).parent).free / 1e6
            raise CheckpointError(
                f"the checkpoint {path} could not be written ({error}; {free:,.1f} MB are free "
                "there); an earlier one of this name is untouched. Make room on the disk, then go "
                "on with --resume auto"
            ) from error


def find_damage(path: Path) -> str | None:
    """Say why a checkpoint cannot be taken, or return None where every byte of it is as written.

    One that holds anything but tensors and plain values is refused: to load it is to run code.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if part := archive.testzip():
                return f"{path} is damaged (in its part {part})"
        read_checkpoint(path)
    except pickle.UnpicklingError:
        return (
            f"{path} is refused: it holds more than tensors and plain values, and loading it could "
            "run code of whoever wrote it"
        )
    except (OSError, RuntimeError, zipfile.BadZipFile) as error:  # torch's reader raises the second
        return f"{path} cannot be read ({error})"
    return None


def find_checkpoint_problem(path: Path) -> str | None:
    """Say why no run can go on from a file, or return None where it is a checkpoint of one."""
    if problem := find_damage(path):
        return problem
    content = read_checkpoint(path)
    wanted = ("pytorch-lightning_version", "epoch", "global_step", "state_dict")
    if isinstance(content, dict) and all(name in content for name in wanted):
        return None
    return f"{path} is no checkpoint of a run: it has not all of {', '.join(wanted)}"


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint to the CPU.

    Raises:
        ValueError: If it is not there, is damaged, or holds more than tensors and plain values.
    """
    if problem := find_damage(path):
        raise ValueError(problem)
    return torch.load(path, map_location="cpu", weights_only=True)


def read_checkpoint(path: Path) -> Any:
    """Read a checkpoint without running code of it; of its tensors only the shapes."""
    return torch.load(path, map_location="meta", weights_only=True)


def describe_checkpoint(path: Path) -> str:
    """Say of a good checkpoint where its run stood, and when it was written."""
    content = read_checkpoint(path)
    written = datetime.fromtimestamp(path.stat().st_mtime).strftime("%Y-%m-%d %H:%M:%S")
    return f"{path} (epoch {content['epoch']}, step {content['global_step']}, written {written})"


def newest_first(paths: Iterable[Path]) -> list[Path]:
    """Sort files by when they were written."""
    return sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True)


def add_name(path: Path, name: Path) -> None:
    """Give a file a second name, or a copy where the file system has no such thing."""
    name.unlink(missing_ok=True)
    try:
        name.hardlink_to(path)
    except OSError:
        shutil.copy2(path, name)


def choose_checkpoint(wanted: str, folder: Path) -> tuple[Path | None, list[str]]:
    """Choose what a run goes on from.

    Args:
        wanted: A path, or ``auto``: last.ckpt, or else the newest other one that can be read.
        folder: Where the run's checkpoints lie.

    Returns:
        The checkpoint, None where there is none, and what is wrong with those that were passed by.
    """
    candidates = [Path(wanted)]
    if wanted == "auto":
        last = folder / "last.ckpt"
        others = (path for path in folder.glob("*.ckpt") if path != last)
        candidates = [last, *newest_first(others)]
    problems: list[str] = []
    for path in candidates:
        problem = (
            find_checkpoint_problem(path) if path.is_file() else f"there is no checkpoint {path}"
        )
        if problem is None:
            return path, problems
        problems.append(problem)
    return None, problems
