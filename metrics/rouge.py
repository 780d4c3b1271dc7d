"""ROUGE F1 as `rouge_score` computes it, with several references and per-example values.

Source: Lin (2004), "ROUGE: A Package for Automatic Evaluation of Summaries"; the numbers are those
of Google's `rouge_score`. Nothing is re-implemented here.
"""

import re
from collections.abc import Sequence
from typing import Any

import torch
from rouge_score.rouge_scorer import RougeScorer
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

KEYS = ("rouge1", "rouge2", "rougeL", "rougeLsum")
BEST = "_best"

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def split_sentences(text: str) -> str:
    """Put each sentence on a line of its own, which is what rougeLsum expects.

    A sentence ends at ".", "!" or "?" followed by white space. Abbreviations ("Mr. Hill") end one
    too; the rule is the same for predictions and references and needs no download.

    Args:
        text: Any text; line breaks in it stay.

    Returns:
        The text with a line break after each sentence.
    """
    return _SENTENCE_END.sub("\n", text.strip())


class Rouge(Metric):
    """Mean ROUGE F1 over examples, as fractions of 1.

    With several references an example's value is the mean over them, and "<key>_best" the best of
    them, each key for itself. Under several ranks `compute` is over the examples of all of them.

    Args:
        use_stemmer: Compare Porter stems instead of words.
        kwargs: Passed to `torchmetrics.Metric`.
    """

    full_state_update = False
    most_references: Tensor

    def __init__(self, use_stemmer: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._scorer = RougeScorer(list(KEYS), use_stemmer=use_stemmer)
        for key in KEYS:
            self.add_state(key, default=[], dist_reduce_fx="cat")
            self.add_state(key + BEST, default=[], dist_reduce_fx="cat")
        self.add_state("most_references", default=torch.tensor(0), dist_reduce_fx="max")

    def update(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
        """Score a batch.

        Args:
            predictions: One text per example [B].
            references: At least one text per example [B].

        Raises:
            ValueError: The lengths differ, or an example has no reference.
        """
        if len(predictions) != len(references):
            raise ValueError(
                f"{len(predictions)} predictions against {len(references)} lists of references: "
                "give one list of references for each prediction."
            )
        for prediction, texts in zip(predictions, references, strict=True):
            if isinstance(texts, str) or not texts:
                raise ValueError(
                    f"Each example needs a list of at least one reference, got {texts!r}."
                )
            scores = [self._score(prediction, text) for text in texts]
            for key in KEYS:
                values = torch.tensor([score[key] for score in scores], dtype=torch.float64)
                getattr(self, key).append(values.mean(dim=0, keepdim=True))
                getattr(self, key + BEST).append(values.max().reshape(1))
            self.most_references = self.most_references.clamp(min=len(texts))

    def compute(self) -> dict[str, Tensor]:
        """Return the mean over all examples of each key, scalars.

        Keys ending in "_best" are left out where no example has several references: they would be
        the same numbers.
        """
        means = {key: values.mean() for key, values in self.per_example().items()}
        return means if self.most_references > 1 else {key: means[key] for key in KEYS}

    def per_example(self) -> dict[str, Tensor]:
        """Return this rank's values in the order of the updates.

        Returns:
            For each of `KEYS`, and for each with "_best" behind it, a float64 tensor [n].

        Raises:
            ValueError: There is no example.
        """
        keys = [*KEYS, *(key + BEST for key in KEYS)]
        # An empty list is left after reset; an empty tensor after a sync over ranks.
        values = {key: getattr(self, key) for key in keys}
        if any(len(value) == 0 for value in values.values()):
            raise ValueError("ROUGE needs at least one example: call update first.")
        return {key: dim_zero_cat(value) for key, value in values.items()}

    def _score(self, prediction: str, reference: str) -> dict[str, float]:
        """F1 of each key for one pair of texts."""
        scores = self._scorer.score(split_sentences(reference), split_sentences(prediction))
        return {key: float(scores[key].fmeasure) for key in KEYS}
