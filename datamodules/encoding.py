"""Tokenize rows: prompts that fit the context, and responses that end in EOS."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from datamodules.prompts import PromptStyle
from datamodules.reading import Row


class Encoded(NamedTuple):
    """The tokens of a row: its prompt and, separately, its response.

    Attributes:
        source: The prompt, int32 [length].
        target: The first reference, int32 [length], ending in EOS; only EOS without references.
        shots: Number of examples before the question.
        cut: Whether the dialogue was truncated.
    """

    source: np.ndarray
    target: np.ndarray
    shots: int
    cut: bool


class Encoder:
    """Turns rows into token ids.

    A prompt is tokenized as one string, so its length is exact. If it is too long, examples are
    dropped: going from the best to the worst, each is kept if it fits together with the question
    and the examples kept so far. A question that is too long by itself has no examples, and the end
    of its dialogue is truncated at the character where the first excess token begins. The
    instruction is never truncated.

    Args:
        tokenizer: A fast tokenizer with an EOS and a padding token.
        prompt: The words around the dialogue.
        examples: Rows that may be shown, solved, before a question.
        max_source_length: Maximum number of tokens of a prompt, EOS included.
        max_target_length: Maximum number of tokens of a response, EOS included.
        best_last: Whether the best example comes last, next to the question, or first.
        continues: Whether responses continue the row of their prompt (decoder-only models). Then
            prompts do not end in EOS, and responses start with the prompt style's ``answer``.
        chat_template: Put prompts into the tokenizer's chat template, as a user's message.

    Raises:
        ValueError: If the tokenizer is unsuitable, or the instruction too long for any dialogue.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompt: PromptStyle,
        examples: Sequence[Row],
        max_source_length: int,
        max_target_length: int,
        best_last: bool = False,
        continues: bool = False,
        chat_template: bool = False,
    ) -> None:
        if not tokenizer.is_fast or None in (tokenizer.eos_token_id, tokenizer.pad_token_id):
            raise ValueError(
                f"tokenizer {tokenizer.name_or_path!r} must be a fast tokenizer (tokenizer.json) "
                "with an EOS and a padding token"
            )
        self.tokenizer = tokenizer
        self.prompt = prompt
        self.blocks = [prompt.example(row.dialogue, row.references[0]) for row in examples]
        self.max_source_length = max_source_length
        self.max_target_length = max_target_length
        self.best_last = best_last
        self.continues = continues
        self.answer = "" if chat_template else prompt.answer
        self.adds_special = not chat_template  # which has the special tokens already
        self.before, self.after = split_chat(tokenizer) if chat_template else ("", "")
        needed = len(self.encode_prompts([self.frame(prompt.wrap(""))])[0])
        if needed >= max_source_length:
            raise ValueError(
                f"data: the instruction of {type(prompt).__name__} takes {needed} tokens and "
                f"leaves no room for a dialogue in max_source_length {max_source_length}; raise it "
                f"(--data.max_source_length) or choose a shorter prompt"
            )

    def encode(
        self, rows: Sequence[Row], picks: Sequence[Sequence[int]] | None = None
    ) -> list[Encoded]:
        """Tokenize rows.

        Args:
            rows: N rows.
            picks: For each row the positions in ``examples`` of the examples requested before its
                question, best first. None shows no examples.
        """
        picks = picks or [()] * len(rows)
        texts = [self.ask(row, shown) for row, shown in zip(rows, picks, strict=True)]
        targets = self.encode_responses(["".join(row.references[:1]) for row in rows])
        encoded = []
        for row, shown, source, target in zip(
            rows, picks, self.encode_prompts(texts), targets, strict=True
        ):
            prompt = source, len(shown), False
            if len(source) > self.max_source_length:
                prompt = self.fit_prompt(row, shown)
            ids, shots, cut = prompt
            encoded.append(Encoded(np.array(ids, np.int32), target, shots, cut))
        return encoded

    def ask(self, row: Row, shown: Sequence[int]) -> str:
        """Return a prompt: examples (positions, best first), and the question."""
        blocks = [self.blocks[position] for position in shown]
        examples = "".join(blocks[:: -1 if self.best_last else 1])
        return self.frame(examples + self.prompt.wrap(row.dialogue))

    def frame(self, text: str) -> str:
        """Put a prompt into the chat template, if there is one."""
        return f"{self.before}{text}{self.after}"

    def fit_prompt(self, row: Row, wanted: Sequence[int]) -> tuple[list[int], int, bool]:
        """Shorten a prompt that is too long with all of its examples.

        Returns:
            Its tokens, its number of examples, and whether its dialogue was truncated.
        """
        (best,) = self.encode_prompts([self.ask(row, [])])
        if len(best) > self.max_source_length:
            return self.truncate(row.dialogue), 0, True
        kept: list[int] = []
        for position in wanted:
            (ids,) = self.encode_prompts([self.ask(row, [*kept, position])])
            if len(ids) <= self.max_source_length:
                best, kept = ids, [*kept, position]
        return best, len(kept), False

    def encode_prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenize prompts without truncation, special tokens included."""
        if not texts:
            return []
        encoding = self.tokenizer(list(texts), verbose=False, add_special_tokens=self.adds_special)
        return [self.leave_open(ids) for ids in encoding["input_ids"]]

    def leave_open(self, ids: list[int]) -> list[int]:
        """Remove a prompt's EOS if the response continues its row."""
        ends = self.continues and ids[-1:] == [self.tokenizer.eos_token_id]
        return ids[:-1] if ends else ids

    def truncate(self, dialogue: str) -> list[int]:
        """Return the tokens of a prompt with its dialogue truncated until it fits."""
        begin = len(self.before + self.prompt.prefix)
        while True:
            encoding = self.tokenizer(
                self.frame(self.prompt.wrap(dialogue)), verbose=False, return_offsets_mapping=True,
                add_special_tokens=self.adds_special,
            )  # fmt: skip
            ids = self.leave_open(encoding["input_ids"])
            excess = len(ids) - self.max_source_length
            if excess <= 0:
                return ids
            # Special tokens are empty; a token across the border belongs to the instruction.
            inside = [
                first - begin
                for first, last in encoding["offset_mapping"]
                if begin <= first < last <= begin + len(dialogue)
            ]
            dialogue = dialogue[: inside[-excess]] if excess <= len(inside) else ""

    def encode_responses(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Tokenize responses to at most ``max_target_length`` tokens, EOS included."""
        if not texts:
            return []
        eos = self.tokenizer.eos_token_id
        given: dict[str, Any] = {"text_target": list(texts)}
        if self.continues:
            given = {"text": [self.answer + text for text in texts], "add_special_tokens": False}
        encoding = self.tokenizer(**given, truncation=False, verbose=False)
        bodies = [ids[:-1] if ids[-1:] == [eos] else ids for ids in encoding["input_ids"]]
        return [np.array([*ids[: self.max_target_length - 1], eos], np.int32) for ids in bodies]


def split_chat(tokenizer: Any) -> tuple[str, str]:
    """Return what a chat template puts before a user's message, and after it for the answer.

    Raises:
        ValueError: If the tokenizer has no chat template.
    """
    if tokenizer.chat_template is None:
        raise ValueError(
            f"data.chat_template: the tokenizer of {tokenizer.name_or_path!r} has no chat "
            "template; leave the setting out"
        )
    mark = "[message]"
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": mark}], tokenize=False, add_generation_prompt=True
    )
    before, _, after = text.partition(mark)
    return before, after


def encode_texts(
    tokenizer: Any, texts: Sequence[str], contexts: Sequence[str] | None, max_length: int
) -> dict[str, Tensor]:
    """Tokenize B texts for a classifier, padded to the same length.

    Args:
        tokenizer: The classifier's tokenizer.
        texts: At least one text.
        contexts: The first text of each pair, such as the dialogue; if a pair is too long, the
            longer text is truncated. None tokenizes the texts alone.
        max_length: Maximum number of tokens, special tokens included.

    Returns:
        The classifier's inputs, int64 [B, L] each.
    """
    pairs = [list(texts)] if contexts is None else [list(contexts), list(texts)]
    settings = {"truncation": True, "max_length": max_length, "return_tensors": "pt"}
    return dict(tokenizer(*pairs, padding=True, padding_side="right", **settings))
