"""Tokens of whole splits, kept on disk: the next start with the same settings does not tokenise."""

import logging
import os
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.paths import expand
from datamodules.encoding import Encoded, Encoder
from datamodules.progress import in_chunks
from datamodules.reading import Row

logger = logging.getLogger(__name__)

_CHUNK = 500


def default_cache_dir() -> Path:
    """Give the user's cache folder for tokenised data (XDG base directory specification)."""
    return expand(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "alignsum" / "tokens"


def encode_cached(
    encoder: Encoder,
    rows: Sequence[Row],
    picks: np.ndarray,
    split: str,
    cache_dir: Path,
    show_progress: bool = True,
) -> Encoded:
    """Tokenise a split, or take its tokens from the cache where the same was done before.

    A damaged entry is built anew; a cache that cannot be written costs only its use.
    """
    path = cache_dir / f"{encoder.key(rows, picks)}.npz"
    encoded = load_encoded(path, len(rows)) if path.exists() else None
    if encoded is not None:
        logger.info("%s: tokens of %d rows taken from %s", split, len(rows), path)
    else:
        encoded = _encode_in_chunks(encoder, rows, picks, split, show_progress)
        try:
            save_encoded(encoded, path)
        except OSError as error:
            logger.warning("The tokens are not kept for the next start: %s", error)
    if cuts := int(encoded.cut.sum()):
        logger.info("%s: %d of %d dialogues were shortened to fit", split, cuts, len(rows))
    if asked := picks.shape[1]:
        fitted = ", ".join(f"{n} before {rows} rows" for n, rows in encoded.count_shots().items())
        logger.info("%s: of %d examples fitted %s", split, asked, fitted)
    return encoded


def save_encoded(encoded: Encoded, path: Path) -> None:
    """Write the tokens to one npz file, atomically: a reader sees all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
        try:
            np.savez(
                file,
                sources=np.concatenate(encoded.sources), targets=np.concatenate(encoded.targets),
                sources_lengths=np.array([len(row) for row in encoded.sources]),
                targets_lengths=np.array([len(row) for row in encoded.targets]),
                shots=encoded.shots, cut=encoded.cut,
            )  # fmt: skip
            file.close()
            Path(file.name).replace(path)
        except OSError:
            Path(file.name).unlink(missing_ok=True)
            raise


def load_encoded(path: Path, rows: int) -> Encoded | None:
    """Read the tokens of ``rows`` rows; None, with a warning, where the file is damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:  # its zip checksums find flipped bytes
            data: dict[str, Any] = {name: file[name] for name in file.files}
        ends = {name: np.cumsum(data[f"{name}_lengths"]) for name in ("sources", "targets")}
        for name, end in ends.items():
            if len(end) != rows or end[-1] != len(data[name]):
                raise ValueError(f"{name} are not those of {rows} rows")
        return Encoded(
            np.split(data["sources"], ends["sources"][:-1]),
            np.split(data["targets"], ends["targets"][:-1]),
            data["shots"],
            data["cut"],
        )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        logger.warning("Cache entry %s is damaged (%s); building it anew", path, error)
        return None


def _encode_in_chunks(
    encoder: Encoder, rows: Sequence[Row], picks: np.ndarray, split: str, show_progress: bool
) -> Encoded:
    parts = []
    description = f"Tokenising {split} ({len(rows)} rows)"
    for chunk in in_chunks(len(rows), _CHUNK, description, show_progress):
        parts.append(encoder.encode(rows[chunk], picks[chunk]))
    return Encoded(
        [row for part in parts for row in part.sources],
        [row for part in parts for row in part.targets],
        np.concatenate([part.shots for part in parts]),
        np.concatenate([part.cut for part in parts]),
    )
