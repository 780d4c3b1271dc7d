"""From rows to token ids: prompts that fit the context, labels that end in EOS, a cache on disk."""

import hashlib
import json
import logging
import os
import tempfile
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import track
from transformers import PreTrainedTokenizerBase

from datamodules.prompts import PromptStyle
from datamodules.reading import Row

logger = logging.getLogger(__name__)

_VERSION = 1
"""Part of every cache key: raise it when the same settings give other tokens."""

_CHUNK = 500


class Encoded(NamedTuple):
    """The tokens of N rows.

    Attributes:
        sources: N prompts, int32 [length] each.
        targets: N first references, int32 [length] each, ending in EOS.
        shots: [N] examples that stand before each question.
        cut: [N] whether the dialogue was shortened.
    """

    sources: list[np.ndarray]
    targets: list[np.ndarray]
    shots: np.ndarray
    cut: np.ndarray


class Encoder:
    """Turns rows into token ids.

    A prompt is tokenised as one string, so what fits is exactly what the tokenizer makes of it.
    Of one that is too long, examples are left out first, the last of them first; then the dialogue
    loses tokens from its end: the cut is the character at which the first token too many begins.
    The instruction is never cut.

    Args:
        tokenizer: A fast tokenizer with an EOS and a padding token.
        prompt: The words around the dialogue.
        examples: Rows shown solved before each question, as many of them as fit.
        max_source_length: Most tokens of a prompt, EOS included.
        max_target_length: Most tokens of a label, EOS included.

    Raises:
        ValueError: If the tokenizer will not do, or the instruction leaves no room for a dialogue.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompt: PromptStyle,
        examples: Sequence[Row],
        max_source_length: int,
        max_target_length: int,
    ) -> None:
        if not tokenizer.is_fast or None in (tokenizer.eos_token_id, tokenizer.pad_token_id):
            raise ValueError(
                f"tokenizer {tokenizer.name_or_path!r} must be a fast one (tokenizer.json) and "
                "have an EOS and a padding token"
            )
        self.tokenizer = tokenizer
        self.prompt = prompt
        self.blocks = [prompt.example(row.dialogue, row.references[0]) for row in examples]
        self.max_source_length = max_source_length
        self.max_target_length = max_target_length
        self._tokenizer_state = tokenizer.backend_tokenizer.to_str()
        needed = len(self.tokenize([prompt.wrap("")])[0])
        if needed >= max_source_length:
            raise ValueError(
                f"data: the instruction of {type(prompt).__name__} takes {needed} tokens and "
                f"leaves no room for a dialogue in max_source_length {max_source_length}; raise it "
                f"(--data.max_source_length) or choose a shorter prompt"
            )

    def key(self, rows: Sequence[Row]) -> str:
        """Give a hash of all that the tokens of these rows depend on."""
        settings = [
            _VERSION, self._tokenizer_state, self.tokenizer.eos_token, self.prompt.prefix,
            self.prompt.suffix, self.blocks, self.max_source_length, self.max_target_length,
            [(row.dialogue, row.references[0]) for row in rows],
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:32]

    def encode(self, rows: Sequence[Row]) -> Encoded:
        """Tokenise rows."""
        sources: list[list[int]] = [[] for _ in rows]
        shots = np.zeros(len(rows), dtype=np.int32)
        cut = np.zeros(len(rows), dtype=bool)
        waiting = list(range(len(rows)))
        for count in range(len(self.blocks), -1, -1):
            shown = "".join(self.blocks[:count])
            tokens = self.tokenize([shown + self.prompt.wrap(rows[i].dialogue) for i in waiting])
            fits = [len(ids) <= self.max_source_length for ids in tokens]
            for i, ids, fit in zip(waiting, tokens, fits, strict=True):
                if fit:
                    sources[i], shots[i] = ids, count
            waiting = [i for i, fit in zip(waiting, fits, strict=True) if not fit]
        for i in waiting:
            sources[i], cut[i] = self.shorten(rows[i].dialogue), True
        targets = self.encode_targets([row.references[0] for row in rows])
        return Encoded(_arrays(sources), _arrays(targets), shots, cut)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenise texts whole, special tokens included."""
        if not texts:
            return []
        return self.tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]

    def shorten(self, dialogue: str) -> list[int]:
        """Give the tokens of a prompt whose dialogue is cut at its end until the prompt fits."""
        begin = len(self.prompt.prefix)
        while True:
            encoding = self.tokenizer(
                self.prompt.wrap(dialogue), return_offsets_mapping=True, verbose=False
            )
            excess = len(encoding["input_ids"]) - self.max_source_length
            if excess <= 0:
                return encoding["input_ids"]
            # Special tokens are empty; a token across the border belongs to the instruction.
            inside = [
                first - begin
                for first, last in encoding["offset_mapping"]
                if begin <= first < last <= begin + len(dialogue)
            ]
            dialogue = dialogue[: inside[-excess]] if excess <= len(inside) else ""

    def encode_targets(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenise references; each ends in one EOS, cut to ``max_target_length`` before it."""
        eos = self.tokenizer.eos_token_id
        encoding = self.tokenizer(text_target=list(texts), truncation=False, verbose=False)
        targets = []
        for ids in encoding["input_ids"]:
            body = ids[:-1] if ids and ids[-1] == eos else ids
            targets.append([*body[: self.max_target_length - 1], eos])
        return targets


def default_cache_dir() -> Path:
    """Give the user's cache folder for tokenised data (XDG base directory specification)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "alignsum" / "tokens"


def encode_cached(
    encoder: Encoder, rows: Sequence[Row], split: str, cache_dir: Path, show_progress: bool = True
) -> Encoded:
    """Tokenise a split, or take its tokens from the cache where the same was done before.

    A damaged entry is built anew; a cache that cannot be written costs only its use.
    """
    path = cache_dir / f"{encoder.key(rows)}.npz"
    encoded = load_encoded(path, len(rows)) if path.exists() else None
    if encoded is not None:
        logger.info("%s: tokens of %d rows taken from %s", split, len(rows), path)
    else:
        encoded = _encode_in_chunks(encoder, rows, split, show_progress)
        try:
            save_encoded(encoded, path)
        except OSError as error:
            logger.warning("The tokens are not kept for the next start: %s", error)
    if cuts := int(encoded.cut.sum()):
        logger.info("%s: %d of %d dialogues were shortened to fit", split, cuts, len(rows))
    if encoder.blocks:
        counts = sorted(Counter(encoded.shots.tolist()).items(), reverse=True)
        fitted = ", ".join(f"{shots} before {rows} rows" for shots, rows in counts)
        logger.info("%s: of %d examples fitted %s", split, len(encoder.blocks), fitted)
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
    encoder: Encoder, rows: Sequence[Row], split: str, show_progress: bool
) -> Encoded:
    parts = []
    for first in track(
        range(0, len(rows), _CHUNK),
        description=f"Tokenising {split} ({len(rows)} rows)",
        console=Console(stderr=True),
        disable=not show_progress,
        transient=True,
    ):
        parts.append(encoder.encode(rows[first : first + _CHUNK]))
    return Encoded(
        [row for part in parts for row in part.sources],
        [row for part in parts for row in part.targets],
        np.concatenate([part.shots for part in parts]),
        np.concatenate([part.cut for part in parts]),
    )


def _arrays(rows: Sequence[Sequence[int]]) -> list[np.ndarray]:
    return [np.asarray(row, dtype=np.int32) for row in rows]
