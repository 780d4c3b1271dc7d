"""Paths as people write them."""

from pathlib import Path


def expand(path: str | Path) -> Path:
    """Put the home folder in place of ``~`` and ``~user``.

    Raises:
        ValueError: If there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(
            f"{path}: no user has the home folder that this begins with; for a file or folder of "
            f"this very name write ./{path}"
        ) from error
