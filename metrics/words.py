"""The words that ROUGE sees, and the names of its values; nothing here needs torch.

Source: `rouge_score`'s own tokenizer, with a memory: a prediction is compared with several
references, and stemming a word anew each time is what takes it longest.
"""

from functools import lru_cache
from itertools import chain

from rouge_score.tokenizers import DefaultTokenizer

KEYS = ("rouge1", "rouge2", "rougeL", "rougeLsum")
BEST = "_best"

_WORDS = DefaultTokenizer(use_stemmer=False)
_STEMS = DefaultTokenizer(use_stemmer=True)


# Enough for all texts of one example and their sentences, which is where texts come again.
@lru_cache(maxsize=256)
def tokenize(text: str, use_stemmer: bool = False) -> tuple[str, ...]:
    """Split a text into the words that `rouge_score` sees: lower-case letters a-z and digits.

    Args:
        text: Any text.
        use_stemmer: Give Porter stems of words of more than three letters.

    Returns:
        The tokens, equal to those of `rouge_score`'s own tokenizer.
    """
    words = _WORDS.tokenize(text)
    return tuple(chain.from_iterable(map(stem, words)) if use_stemmer else words)


@lru_cache(maxsize=2**16)
def stem(word: str) -> tuple[str, ...]:
    """Give the stem of one word, as a tuple of one; an empty one where nothing is left of it."""
    return tuple(_STEMS.tokenize(word))
