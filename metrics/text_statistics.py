"""Statistics of summaries: length, novelty, copying.

Each is a function of (predictions, dialogues, references) that returns one number per example;
callbacks, `alignsum score` and rewards use them. Words are compared as in ROUGE without a stemmer:
lower-case letters and digits (`metrics.rouge_scores.tokenize`).
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import takewhile

from metrics.rouge_scores import tokenize

Tokens = Sequence[str]

TextMetric = Callable[[Sequence[str], Sequence[str], Sequence[Sequence[str]]], list[float]]
"""One number per example from its prediction, its dialogue and its references, all [n]."""


def words(
    predictions: Sequence[str], dialogues: Sequence[str], references: Sequence[Sequence[str]]
) -> list[float]:
    """Count the words of each prediction, separated by white space."""
    return [float(len(text.split())) for text in predictions]


def length_ratio(
    predictions: Sequence[str], dialogues: Sequence[str], references: Sequence[Sequence[str]]
) -> list[float]:
    """Return each prediction's number of words relative to its references' mean.

    Raises:
        ValueError: No reference of an example has a word.
    """
    ratios = []
    for prediction, texts in zip(predictions, references, strict=True):
        total = sum(len(text.split()) for text in texts)
        if not total:
            raise ValueError(f"A ratio of lengths needs references with words, got {texts!r}.")
        ratios.append(len(prediction.split()) * len(texts) / total)
    return ratios


def novelty(
    predictions: Sequence[str],
    dialogues: Sequence[str],
    references: Sequence[Sequence[str]],
    n: int = 2,
) -> list[float]:
    """Return the share of each prediction's n-grams that are not in its dialogue.

    Repeated n-grams count each time. A text of fewer than n words has no n-gram and gets 0.
    Source: See et al. (2017), "Get To The Point: Summarization with Pointer-Generator Networks".
    """
    shares = []
    for prediction, dialogue in zip(predictions, dialogues, strict=True):
        known = set(_ngrams(tokenize(dialogue), n))
        grams = _ngrams(tokenize(prediction), n)
        shares.append(sum(gram not in known for gram in grams) / max(len(grams), 1))
    return shares


def copy_density(
    predictions: Sequence[str], dialogues: Sequence[str], references: Sequence[Sequence[str]]
) -> list[float]:
    """Return the mean length of the copied fragment that each word is in.

    The density of Grusky et al. (2018), "Newsroom: A Dataset of 1.3 Million Summaries with Diverse
    Extractive Strategies": the sum of squared fragment lengths over the number of words. A
    completely copied text gets its own length, a text of new words 0. (Their coverage, which does
    not distinguish long fragments, is 1 - novelty of 1-grams.)
    """
    densities = []
    for prediction, dialogue in zip(predictions, dialogues, strict=True):
        summary = tokenize(prediction)
        lengths = fragment_lengths(summary, tokenize(dialogue))
        densities.append(sum(length**2 for length in lengths) / max(len(summary), 1))
    return densities


def fragment_lengths(summary: Tokens, source: Tokens) -> list[int]:
    """Find the fragments that a summary copies from a source.

    Greedily from left to right, the longest sequence of words that also occurs in the source
    (Grusky et al. 2018).

    Args:
        summary: The words of the summary.
        source: The words of the source.

    Returns:
        The lengths of the fragments in the order of the summary, in words.
    """
    positions: dict[str, list[int]] = {}
    for position, word in enumerate(source):
        positions.setdefault(word, []).append(position)
    lengths = []
    start = 0
    while start < len(summary):
        here = positions.get(summary[start], [])
        longest = max(
            (_common_prefix(summary, start, source, position) for position in here), default=0
        )
        if longest:
            lengths.append(longest)
        start += max(longest, 1)
    return lengths


STATISTICS: dict[str, TextMetric] = {
    "words": words,
    "length_ratio": length_ratio,
    **{f"novelty{n}": partial(novelty, n=n) for n in (1, 2, 3)},
    "copy_density": copy_density,
}
"""All statistics by the name under which they are logged."""

NEED_DIALOGUE = frozenset(STATISTICS) - {"words", "length_ratio"}
"""The statistics that read the dialogue; the others accept empty ones."""


def _common_prefix(summary: Tokens, start: int, source: Tokens, position: int) -> int:
    """Count the equal words from `start` in the summary and `position` in the source."""
    pairs = zip(summary[start:], source[position:], strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _ngrams(tokens: Tokens, n: int) -> list[tuple[str, ...]]:
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
