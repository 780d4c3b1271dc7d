"""Check whether a summary is faithful to its dialogue, by three simple rules.

1. It names a speaker (#Person3#) that is not in the dialogue.
2. It names a person or a place that is not in the dialogue (`metrics.names`).
3. It fits its references better with #Person1# and #Person2# swapped: the roles are mixed up.

A summary that passes may still be wrong; one that fails is worth reading. Each check is a function
of (predictions, dialogues, references) that returns 1.0 if a summary fails and 0.0 if not, so its
mean is the share of failures; callbacks, `alignsum score` and rewards use it.
"""

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from metrics.names import SPEAKER, find_unknown_names
from metrics.rouge_scores import make_scorer
from metrics.text_statistics import TextMetric

SWAP_MARGIN = 0.02
"""Gain in ROUGE-2 from swapping the speakers above which they count as mixed up.

Of human references, scored against the others of their dialogue, 2 % gain more; of the same
references with their speakers swapped, 68 % do (`python -m benchmarks.faithfulness`).
"""


@cache
def _bigrams() -> Any:
    return make_scorer(["rouge2"])


def find_unknown_speakers(summary: str, dialogue: str) -> list[str]:
    """List the speakers in a summary that are not in its dialogue.

    Returns:
        Tags such as "#Person3#", without repetitions, in the order of the summary.
    """
    known = set(_find_speakers(dialogue))
    return [speaker for speaker in _find_speakers(summary) if speaker not in known]


def swap_speakers(text: str) -> str:
    """Swap #Person1# and #Person2# in a text."""
    other = {"#Person1#": "#Person2#", "#Person2#": "#Person1#"}
    return SPEAKER.sub(lambda tag: other.get(_to_tag(tag), tag[0]), text)


def gain_by_swapping(summary: str, references: Sequence[str]) -> float:
    """Return the change in ROUGE-2 F1 from swapping the speakers in a summary.

    ROUGE-2, because bigrams tell who does what: "person1 ask" differs from "person2 ask", while
    the unigrams stay the same.

    Args:
        summary: The text to check.
        references: At least one; their values are averaged.

    Returns:
        A number in [-1, 1]; positive if the swapped summary fits better.
    """
    swapped = swap_speakers(summary)
    if swapped == summary:
        return 0.0
    gains = [
        _bigrams().score(text, swapped)["rouge2"].fmeasure
        - _bigrams().score(text, summary)["rouge2"].fmeasure
        for text in references
    ]
    return sum(gains) / len(gains)


def unfaithful_speaker(
    predictions: Sequence[str], dialogues: Sequence[str], references: Sequence[Sequence[str]]
) -> list[float]:
    """Return 1.0 for each prediction with a speaker who is not in its dialogue."""
    pairs = zip(predictions, dialogues, strict=True)
    return [float(bool(find_unknown_speakers(*pair))) for pair in pairs]


def unfaithful_name(
    predictions: Sequence[str], dialogues: Sequence[str], references: Sequence[Sequence[str]]
) -> list[float]:
    """Return 1.0 for each prediction with a proper name that is not in its dialogue."""
    pairs = zip(predictions, dialogues, strict=True)
    return [float(bool(find_unknown_names(*pair))) for pair in pairs]


def swapped_speakers(
    predictions: Sequence[str], dialogues: Sequence[str], references: Sequence[Sequence[str]]
) -> list[float]:
    """Return 1.0 for each prediction that gains more than `SWAP_MARGIN`."""
    pairs = zip(predictions, references, strict=True)
    return [float(gain_by_swapping(*pair) > SWAP_MARGIN) for pair in pairs]


CHECKS: dict[str, TextMetric] = {
    "unfaithful_speaker": unfaithful_speaker,
    "unfaithful_name": unfaithful_name,
    "swapped_speakers": swapped_speakers,
}
"""All checks by the name under which they are logged."""

NEED_DIALOGUE = frozenset(CHECKS) - {"swapped_speakers"}
"""The checks that read the dialogue; the others accept empty ones."""


def _find_speakers(text: str) -> list[str]:
    """Return the speaker tags in a text, without repetitions, in its order."""
    return list(dict.fromkeys(map(_to_tag, SPEAKER.finditer(text))))


def _to_tag(match: re.Match[str]) -> str:
    """Return a speaker tag as DialogSum writes it."""
    return f"#Person{int(match[1] or match[2])}#"
