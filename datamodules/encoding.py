"""From rows to token ids: prompts that fit the context, labels that end in EOS."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from datamodules.prompts import PromptStyle
from datamodules.reading import Row

_VERSION = 2
"""Part of every cache key: raise it when the same settings give other tokens."""


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

    def count_shots(self) -> dict[int, int]:
        """Count the rows by how many examples they have, the most examples first."""
        return dict(sorted(Counter(self.shots.tolist()).items(), reverse=True))

    def describe(self, asked: int) -> dict[str, Any]:
        """Say in JSON's types what became of the rows, of whose examples ``asked`` were wanted."""
        return {
            "rows": len(self.sources),
            "shortened": int(self.cut.sum()),
            "shots_asked": asked,
            "shots_fitted_mean": float(self.shots.mean()),
            "shots_fitted": {str(n): rows for n, rows in self.count_shots().items()},
        }


class Encoder:
    """Turns rows into token ids.

    A prompt is tokenised as one string, so what fits is exactly what the tokenizer makes of it.
    Where it is too long, examples are left out: from the most wanted on, each is kept that still
    fits beside the question and those kept before it. A question that is too long by itself has no
    example and loses tokens from the end of its dialogue: the cut is the character at which the
    first token too many begins. The instruction is never cut.

    Args:
        tokenizer: A fast tokenizer with an EOS and a padding token.
        prompt: The words around the dialogue.
        examples: Rows that may be shown solved before a question.
        max_source_length: Most tokens of a prompt, EOS included.
        max_target_length: Most tokens of a label, EOS included.
        best_last: Whether the most wanted example stands last, next to the question, or first.

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
        best_last: bool = False,
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
        self.best_last = best_last
        self._tokenizer_state = tokenizer.backend_tokenizer.to_str()
        needed = len(self.tokenize([prompt.wrap("")])[0])
        if needed >= max_source_length:
            raise ValueError(
                f"data: the instruction of {type(prompt).__name__} takes {needed} tokens and "
                f"leaves no room for a dialogue in max_source_length {max_source_length}; raise it "
                f"(--data.max_source_length) or choose a shorter prompt"
            )

    def key(self, rows: Sequence[Row], picks: np.ndarray) -> str:
        """Give a hash of all that the tokens of these rows depend on."""
        shown = np.unique(picks[picks >= 0])
        settings = [
            _VERSION, self._tokenizer_state, self.tokenizer.eos_token, self.prompt.prefix,
            self.prompt.suffix, self.max_source_length, self.max_target_length, self.best_last,
            [(int(place), self.blocks[place]) for place in shown], picks.tolist(),
            [(row.dialogue, row.references[0]) for row in rows],
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:32]

    def encode(self, rows: Sequence[Row], picks: np.ndarray | None = None) -> Encoded:
        """Tokenise N rows.

        Args:
            rows: The rows.
            picks: [N, K] examples wanted before each question, by their places in ``examples``, the
                most wanted first; a negative number is none. None shows no examples.
        """
        if picks is None:
            picks = np.empty((len(rows), 0), dtype=np.int32)
        wanted = [[int(place) for place in row if place >= 0] for row in picks]
        texts = [self.ask(row, places) for row, places in zip(rows, wanted, strict=True)]
        sources = self.tokenize(texts)
        shots = np.array([len(places) for places in wanted], dtype=np.int32)
        cut = np.zeros(len(rows), dtype=bool)
        for i, ids in enumerate(sources):
            if len(ids) > self.max_source_length:
                sources[i], shots[i], cut[i] = self.fit_prompt(rows[i], wanted[i])
        targets = self.encode_targets([row.references[0] for row in rows])
        return Encoded(_arrays(sources), _arrays(targets), shots, cut)

    def ask(self, row: Row, shown: Sequence[int]) -> str:
        """Give a prompt: the examples at some places, the most wanted first, and the question."""
        blocks = [self.blocks[place] for place in shown]
        return "".join(blocks[:: -1 if self.best_last else 1]) + self.prompt.wrap(row.dialogue)

    def fit_prompt(self, row: Row, wanted: Sequence[int]) -> tuple[list[int], int, bool]:
        """Make a prompt fit that is too long with all of its examples.

        Returns:
            Its tokens, how many examples it has, and whether its dialogue was cut.
        """
        (best,) = self.tokenize([self.ask(row, [])])
        if len(best) > self.max_source_length:
            return self.shorten(row.dialogue), 0, True
        kept: list[int] = []
        for place in wanted:
            (ids,) = self.tokenize([self.ask(row, [*kept, place])])
            if len(ids) <= self.max_source_length:
                best, kept = ids, [*kept, place]
        return best, len(kept), False

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


def encode_texts(
    tokenizer: Any, texts: Sequence[str], contexts: Sequence[str] | None, max_length: int
) -> dict[str, Tensor]:
    """Tokenise B texts for a classifier, padded to one length.

    Args:
        tokenizer: The classifier's.
        texts: At least one.
        contexts: What each is said about, the first text of a pair; where the two are too long
            together the longer one is cut at its end. None takes the texts alone.
        max_length: Most tokens, special ones included.

    Returns:
        All that the classifier takes, int64 [B, L] each.
    """
    pairs = [list(texts)] if contexts is None else [list(contexts), list(texts)]
    return dict(
        tokenizer(*pairs, truncation=True, max_length=max_length, padding=True, return_tensors="pt")
    )


def _arrays(rows: Sequence[Sequence[int]]) -> list[np.ndarray]:
    return [np.asarray(row, dtype=np.int32) for row in rows]
