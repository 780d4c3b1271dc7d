"""Write checkpoint files atomically, check them, and choose the one to resume from."""

import pickle
import shutil
import zipfile
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO

from common.run_folder import replacing

RESUME = "alignsum_resume"
"""Key of a checkpoint under which :class:`RunCheckpoint` stores how to resume from it."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write a checkpoint to a temporary file, fsync it, and rename it.

    Lightning's own plugin writes to the system's temporary folder and moves the file from there,
    which is a copy, and can be interrupted, when that is another file system.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint.

        Raises:
            OSError: If it cannot be written, with the cause.
        """
        try:
            with replacing(Path(path)) as partial:
                torch.save(checkpoint, partial)
        except (OSError, RuntimeError) as error:  # torch's writer raises the latter
            free = shutil.disk_usage(Path(path).parent).free / 1e6
            raise OSError(
                f"the checkpoint {path} could not be written ({error}; {free:,.1f} MB are free "
                "there); earlier checkpoints are untouched. Make room on the disk, then resume "
                "with --resume auto"
            ) from error


def find_checkpoint_problem(path: Path) -> str | None:
    """Explain why a run cannot resume from a file, or return None if every byte is intact.

    A file that contains anything but tensors and plain values is refused: loading it runs code.
    """
    if not path.is_file():
        return f"there is no checkpoint {path}"
    try:
        with zipfile.ZipFile(path) as archive:
            if part := archive.testzip():
                return f"{path} is damaged (in its part {part})"
        content = read_checkpoint(path)
    except pickle.UnpicklingError:
        return (
            f"{path} is refused: it contains more than tensors and plain values, and loading it "
            "could run someone else's code"
        )
    except (OSError, RuntimeError, zipfile.BadZipFile) as error:  # torch's reader raises the second
        return f"{path} cannot be read ({error})"
    if not isinstance(content, dict) or not {"epoch", "global_step", "state_dict"} <= set(content):
        return f"{path} is not a checkpoint of a run"
    return None


def read_checkpoint(path: Path) -> Any:
    """Read a checkpoint without running its code, with the shapes of its tensors only."""
    return torch.load(path, map_location="meta", weights_only=True)


def describe_checkpoint(path: Path) -> str:
    """Name a checkpoint with its epoch, its step, and when it was written."""
    content = read_checkpoint(path)
    written = datetime.fromtimestamp(path.stat().st_mtime).strftime("%Y-%m-%d %H:%M:%S")
    return f"{path} (epoch {content['epoch']}, step {content['global_step']}, written {written})"


def choose_checkpoint(wanted: str, folder: Path) -> tuple[Path | None, list[str]]:
    """Choose the checkpoint to resume from.

    Args:
        wanted: A path, or ``auto``: last.ckpt, or else the newest other one that is intact.
        folder: The run's checkpoints.

    Returns:
        The checkpoint, None if there is none, and the problems of those that were rejected.
    """
    last = folder / "last.ckpt"
    others = (path for path in folder.glob("[!.]*.ckpt") if path != last)
    newest_first = sorted(others, key=lambda path: path.stat().st_mtime, reverse=True)
    problems: list[str] = []
    for path in [last, *newest_first] if wanted == "auto" else [Path(wanted)]:
        problem = find_checkpoint_problem(path)
        if problem is None:
            if read_checkpoint(path).get(RESUME, {}).get("exact", True):
                return path, problems
            problem = f"{path} was saved in the middle of an optimizer step"
        problems.append(problem)
    return None, problems
