"""ROUGE as a reward function for PPO."""

from collections.abc import Sequence

from metrics.rouge_scores import BEST, KEYS, score_rouge


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
