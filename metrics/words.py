"""The tokens that ROUGE compares, and the names of its values; imports no torch.

The tokenizer is `rouge_score`'s own, with a cache, because a prediction is compared with several
references and stemming is the slowest part.
"""

from functools import lru_cache
from itertools import chain
from typing import Any

KEYS = ("rouge1", "rouge2", "rougeL", "rougeLsum")
BEST = "_best"


@lru_cache
def _make_tokenizer(use_stemmer: bool) -> Any:
    from rouge_score.tokenizers import DefaultTokenizer  # imported late: nltk takes a second

    return DefaultTokenizer(use_stemmer)


# Enough for all texts of one example and their sentences, which are the repeated ones.
@lru_cache(maxsize=256)
def tokenize(text: str, use_stemmer: bool = False) -> tuple[str, ...]:
    """Split a text into `rouge_score`'s tokens: lower-case letters and digits.

    Args:
        text: Any text.
        use_stemmer: Return Porter stems of words of more than three letters.

    Returns:
        The tokens, equal to those of `rouge_score`'s tokenizer.
    """
    words = _make_tokenizer(False).tokenize(text)
    return tuple(chain.from_iterable(map(stem, words)) if use_stemmer else words)


@lru_cache(maxsize=2**16)
def stem(word: str) -> tuple[str, ...]:
    """Return the stem of one word as a tuple, which is empty if nothing is left of it."""
    return tuple(_make_tokenizer(True).tokenize(word))
