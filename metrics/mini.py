"""Find rude and unfaithful summaries of the miniature by word lists.

Word lists (``assets/mini/words.json``) decide, so no classifier's blind spots can fool them: PPO's
reward is checked against them, and the simulated annotators rank by them.
"""

import json
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

_WORDS = Path(__file__).resolve().parents[1] / "assets" / "mini" / "words.json"
_WORD = re.compile(r"\$\d+|\d+:\d+|#Person\d+#|[^\W_]+(?:'[^\W_]+)*")


class Faults(NamedTuple):
    """What is wrong with a summary."""

    rude: bool
    unfaithful: bool


@cache
def load_words(kind: str) -> frozenset[str]:
    """Load a word list in lower case.

    Args:
        kind: "rude", words that insult somebody; or "summary", the words that all summaries of
            the miniature are made of, apart from the values that they take from the dialogue.
    """
    return frozenset(json.loads(_WORDS.read_text(encoding="utf-8"))[kind])


def split_words(text: str) -> list[str]:
    """Split a text into lower-case words, times, prices and speaker tags."""
    return [word.lower() for word in _WORD.findall(text)]


def find_faults(summary: str, dialogue: str) -> Faults:
    """Judge a summary by its words.

    It is rude if it contains an insult. It is unfaithful if it contains a word, name or number that
    is neither in the dialogue nor one of the words that summaries are made of. (A word used for the
    wrong thing goes unnoticed.)
    """
    words = split_words(summary)
    known = {*split_words(dialogue)} | load_words("summary")
    return Faults(
        rude=not load_words("rude").isdisjoint(words),
        unfaithful=any(word not in known for word in words),
    )


def share_polite(
    predictions: Sequence[str], dialogues: Sequence[Any], references: Sequence[Any]
) -> list[float]:
    """Return the share of words in each text that are not insults; 1 if empty."""
    words = [re.findall(r"[a-z']+", text.lower()) for text in predictions]
    rude = load_words("rude")
    return [1 - sum(word in rude for word in text) / max(len(text), 1) for text in words]
