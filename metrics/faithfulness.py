"""Is a summary faithful to its dialogue? Three simple checks that say what they found.

1. It names a speaker (#Person3#) that the dialogue does not have.
2. It names a person or a place that the dialogue does not have (`metrics.names`).
3. It fits its references better with #Person1# and #Person2# exchanged: the roles are mixed up.

A summary that passes may still be wrong; one that fails is worth reading. Each check is a function
of (predictions, dialogues, references) that gives 1.0 where a summary fails and 0.0 where not, so
that its mean is the share of failures and callbacks, `report.py score` and rewards can use it.
"""

import re
from collections.abc import Sequence

from rouge_score.rouge_scorer import RougeScorer

from metrics.names import SPEAKER, find_unknown_names
from metrics.rouge import RememberingTokenizer
from metrics.text_statistics import TextMetric

SWAP_MARGIN = 0.02
"""How much ROUGE-2 has to gain by an exchange of the speakers to call them swapped.

Of human references, each against the others of its dialogue, 2 % gain more, and 68 % of the same
references do after the two speakers were exchanged in them (`python -m benchmarks.faithfulness`).
"""

_BIGRAMS = RougeScorer(["rouge2"], tokenizer=RememberingTokenizer(use_stemmer=True))


def find_unknown_speakers(summary: str, dialogue: str) -> list[str]:
    """List the speakers that a summary names and its dialogue does not have.

    Returns:
        Tags such as "#Person3#", each once, in the order of the summary.
    """
    known = set(_find_speakers(dialogue))
    return [speaker for speaker in _find_speakers(summary) if speaker not in known]


def swap_speakers(text: str) -> str:
    """Exchange #Person1# and #Person2# in a text."""
    other = {"#Person1#": "#Person2#", "#Person2#": "#Person1#"}
    return SPEAKER.sub(lambda tag: other.get(_to_tag(tag), tag[0]), text)


def gain_by_swapping(summary: str, references: Sequence[str]) -> float:
    """Give the change of ROUGE-2 F1 when #Person1# and #Person2# are exchanged in a summary.

    ROUGE-2 because pairs of words tell who does what: "person1 ask" is another pair than "person2
    ask", while single words are the same in another order.

    Args:
        summary: The text to check.
        references: At least one; their values are averaged.

    Returns:
        Between -1 and 1; above 0 the exchanged summary fits better.
    """
    swapped = swap_speakers(summary)
    if swapped == summary:
        return 0.0
    gains = [
        _BIGRAMS.score(text, swapped)["rouge2"].fmeasure
        - _BIGRAMS.score(text, summary)["rouge2"].fmeasure
        for text in references
    ]
    return sum(gains) / len(gains)


def unfaithful_speaker(
    predictions: Sequence[str], dialogues: Sequence[str], references: Sequence[Sequence[str]]
) -> list[float]:
    """Give 1.0 for each prediction that names a speaker whom its dialogue does not have."""
    pairs = zip(predictions, dialogues, strict=True)
    return [float(bool(find_unknown_speakers(*pair))) for pair in pairs]


def unfaithful_name(
    predictions: Sequence[str], dialogues: Sequence[str], references: Sequence[Sequence[str]]
) -> list[float]:
    """Give 1.0 for each prediction with a proper name that its dialogue does not have."""
    pairs = zip(predictions, dialogues, strict=True)
    return [float(bool(find_unknown_names(*pair))) for pair in pairs]


def swapped_speakers(
    predictions: Sequence[str], dialogues: Sequence[str], references: Sequence[Sequence[str]]
) -> list[float]:
    """Give 1.0 for each prediction whose references fit better by `SWAP_MARGIN` when swapped."""
    pairs = zip(predictions, references, strict=True)
    return [float(gain_by_swapping(*pair) > SWAP_MARGIN) for pair in pairs]


CHECKS: dict[str, TextMetric] = {
    "unfaithful_speaker": unfaithful_speaker,
    "unfaithful_name": unfaithful_name,
    "swapped_speakers": swapped_speakers,
}
"""All of them by the name under which they are logged."""

NEED_DIALOGUE = frozenset(CHECKS) - {"swapped_speakers"}
"""Those that look at the dialogue; the others may be given empty ones."""


def _find_speakers(text: str) -> list[str]:
    """The speakers' tags in a text, each once, in its order."""
    return list(dict.fromkeys(map(_to_tag, SPEAKER.finditer(text))))


def _to_tag(match: re.Match[str]) -> str:
    """A speaker as DialogSum writes it."""
    return f"#Person{int(match[1] or match[2])}#"
