"""ROUGE F1 as computed by `rouge_score`, per example, with several references.

Source: Lin (2004), "ROUGE: A Package for Automatic Evaluation of Summaries". Nothing is
re-implemented: Google's `rouge_score` computes the values, and only its tokens are cached, because
stemming the same words again for each reference takes it longest (`python -m benchmarks.rouge`).
"""

import re
from collections.abc import Sequence
from typing import Any

from metrics.words import BEST, KEYS, tokenize

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def split_sentences(text: str) -> str:
    """Put each sentence on its own line, as rougeLsum expects.

    A sentence ends at ".", "!" or "?" followed by white space. Abbreviations ("Mr. Hill") end one
    too; the rule is the same for predictions and references and needs no download.

    Args:
        text: Any text; its line breaks are kept.

    Returns:
        The text with a line break after each sentence.
    """
    return _SENTENCE_END.sub("\n", text.strip())


class CachingTokenizer:
    """`rouge_score`'s default tokenizer with a cache.

    Args:
        use_stemmer: See :func:`tokenize`.
    """

    def __init__(self, use_stemmer: bool) -> None:
        self.use_stemmer = use_stemmer

    def tokenize(self, text: str) -> tuple[str, ...]:
        """See :func:`tokenize`."""
        return tokenize(text, self.use_stemmer)


def make_scorer(keys: Sequence[str], use_stemmer: bool = True) -> Any:
    """Return a `rouge_score` scorer with our tokenizer."""
    from rouge_score.rouge_scorer import RougeScorer  # imported late: nltk takes a second

    return RougeScorer(list(keys), tokenizer=CachingTokenizer(use_stemmer))


def score_rouge(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    use_stemmer: bool = True,
    with_best: bool | None = None,
) -> dict[str, list[float]]:
    """Compute the ROUGE F1 of each prediction.

    Args:
        predictions: One text per example [B].
        references: At least one text per example [B].
        use_stemmer: Compare Porter stems instead of words.
        with_best: Whether to return the best reference's value too; None does if any example has
            several references, because otherwise it is the same number.

    Returns:
        For each of `KEYS` B fractions of 1, the mean over the references, and as "<key>_best" the
        best of them.

    Raises:
        ValueError: The lengths differ, or an example has no reference.
    """
    if isinstance(predictions, str) or len(predictions) != len(references):
        raise ValueError(
            f"{len(predictions)} predictions against {len(references)} lists of references: "
            "pass a list of predictions and one list of references for each of them."
        )
    if bad := [texts for texts in references if isinstance(texts, str) or not texts]:
        raise ValueError(f"Each example needs a list of at least one reference, got {bad[0]!r}.")
    scorer = make_scorer(KEYS, use_stemmer)
    if with_best is None:
        with_best = any(len(texts) > 1 for texts in references)
    values: dict[str, list[float]] = {key: [] for key in KEYS}
    values |= {key + BEST: [] for key in KEYS if with_best}
    for prediction, texts in zip(predictions, references, strict=True):
        lines = split_sentences(prediction)
        scores = [scorer.score(split_sentences(text), lines) for text in texts]
        for key in KEYS:
            found = [float(score[key].fmeasure) for score in scores]
            values[key].append(sum(found) / len(found))
            if with_best:
                values[key + BEST].append(max(found))
    return values


def rouge(
    predictions: Sequence[str],
    dialogues: Sequence[str],
    references: Sequence[Sequence[str]],
    key: str = "rougeL",
    use_stemmer: bool = True,
) -> list[float]:
    """Return the ROUGE of each prediction, as a reward function for PPO.

    Args:
        predictions: B texts.
        dialogues: B texts; not used.
        references: B lists of at least one text.
        key: One of `KEYS`, optionally with "_best".
        use_stemmer: Compare Porter stems instead of words.

    Returns:
        B numbers in [0, 1].

    Raises:
        ValueError: The key is unknown.
    """
    if key.removesuffix(BEST) not in KEYS:
        raise ValueError(f"ROUGE has no {key!r}; use one of {', '.join(KEYS)}, also with {BEST}")
    return score_rouge(predictions, references, use_stemmer, with_best=True)[key]
