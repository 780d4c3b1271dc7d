"""ROUGE F1 as computed by `rouge_score`, per example, with several references.

Source: Lin (2004), "ROUGE: A Package for Automatic Evaluation of Summaries". Nothing is
re-implemented: Google's `rouge_score` computes the values, and only its tokens are cached, because
stemming the same words again for each reference takes it longest.
This module imports no torch, so that `alignsum score` starts fast.
"""

import re
from collections.abc import Sequence
from functools import lru_cache, partial
from itertools import chain
from types import SimpleNamespace
from typing import Any

KEYS = ("rouge1", "rouge2", "rougeL", "rougeLsum")
BEST = "_best"

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


@lru_cache
def _make_tokenizer(use_stemmer: bool) -> Any:
    from rouge_score.tokenizers import DefaultTokenizer  # imported late: nltk takes a second

    return DefaultTokenizer(use_stemmer)


# Enough for all texts of one example and their sentences, which are the repeated ones.
@lru_cache(maxsize=256)
def tokenize(text: str, use_stemmer: bool = False) -> tuple[str, ...]:
    """Split a text into the tokens of `rouge_score`'s own tokenizer.

    Args:
        text: Any text.
        use_stemmer: Return Porter stems of words of more than three letters.

    Returns:
        Words of lower-case letters and digits, or their stems.
    """
    words = _make_tokenizer(False).tokenize(text)
    return tuple(chain.from_iterable(map(stem, words)) if use_stemmer else words)


@lru_cache(maxsize=2**16)
def stem(word: str) -> tuple[str, ...]:
    """Return the stem of one word as a tuple, which is empty if nothing is left of it."""
    return tuple(_make_tokenizer(True).tokenize(word))


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


def make_scorer(keys: Sequence[str], use_stemmer: bool = True) -> Any:
    """Return a `rouge_score` scorer with cached tokens."""
    from rouge_score.rouge_scorer import RougeScorer  # imported late: nltk takes a second

    tokenizer = SimpleNamespace(tokenize=partial(tokenize, use_stemmer=use_stemmer))
    return RougeScorer(list(keys), tokenizer=tokenizer)


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
