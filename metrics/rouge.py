"""ROUGE F1 as `rouge_score` computes it, with several references and per-example values.

Source: Lin (2004), "ROUGE: A Package for Automatic Evaluation of Summaries"; the numbers are those
of Google's `rouge_score`. Nothing is re-implemented here; only its tokens are remembered, because
a prediction is compared with several references, and stemming a word anew each time is what takes
`rouge_score` longest (`python -m benchmarks.rouge` compares the two).
"""

import re
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import Tokenizer
from torch import Tensor
from torchmetrics import Metric

from metrics.intervals import Estimate, bootstrap_mean
from metrics.words import BEST, KEYS, tokenize

_COLUMNS = (*KEYS, *(key + BEST for key in KEYS))

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


class RememberingTokenizer(Tokenizer):
    """`rouge_score`'s default tokenizer, with a memory.

    Args:
        use_stemmer: See :func:`tokenize`.
    """

    def __init__(self, use_stemmer: bool) -> None:
        self.use_stemmer = use_stemmer

    def tokenize(self, text: str) -> tuple[str, ...]:
        """See :func:`tokenize`."""
        return tokenize(text, self.use_stemmer)


class Rouge(Metric):
    """Mean ROUGE F1 over examples, as fractions of 1.

    With several references an example's value is the mean over them, and "<key>_best" the best of
    them, each key for itself. Under several ranks `compute` and `estimates` are over the examples
    of all of them; a rank may have none. Values are float64 whatever the module around is cast to.

    Args:
        use_stemmer: Compare Porter stems instead of words.
        kwargs: Passed to `torchmetrics.Metric`.
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False
    values: list[Tensor] | Tensor
    most_references: Tensor

    def __init__(self, use_stemmer: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._scorer = RougeScorer(list(KEYS), tokenizer=RememberingTokenizer(use_stemmer))
        # Flat, a row of numbers after the other: the ranks' parts are then 1-D whatever their
        # length, also that of a rank without examples, which torchmetrics takes to be 1-D.
        self.add_state("values", default=[], dist_reduce_fx="cat")
        self.add_state("most_references", default=torch.tensor(0), dist_reduce_fx="max")

    @property
    def dtype(self) -> torch.dtype:
        """That of the values, which a rank without examples has to know too."""
        return torch.float64

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> Any:
        """Follow the module to its device, but not to its precision."""
        return super()._apply(lambda state: state.to(fn(state).device), exclude_state)

    def update(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
        """Score a batch.

        Args:
            predictions: One text per example [B].
            references: At least one text per example [B].

        Raises:
            ValueError: The lengths differ, or an example has no reference.
        """
        if isinstance(predictions, str) or len(predictions) != len(references):
            raise ValueError(
                f"{len(predictions)} predictions against {len(references)} lists of references: "
                "give a list of predictions and one list of references for each of them."
            )
        for texts in references:
            if isinstance(texts, str) or not texts:
                raise ValueError(
                    f"Each example needs a list of at least one reference, got {texts!r}."
                )
        if not predictions:
            return
        rows = chain.from_iterable(map(self._score, predictions, references))
        values = torch.tensor(list(rows), dtype=torch.float64, device=self.device)
        self.values.append(values)  # type: ignore[union-attr] # a tensor only while synced
        most = max(len(texts) for texts in references)
        self.most_references = self.most_references.clamp(min=most)

    def compute(self) -> dict[str, Tensor]:
        """Return the mean over all examples of each key, float64 scalars.

        Keys ending in "_best" are left out where no example has several references: they would be
        the same numbers.

        Raises:
            ValueError: There is no example.
        """
        return {key: values.mean() for key, values in self._telling(self.per_example()).items()}

    def estimates(self, resamples: int = 1000, seed: int = 0) -> dict[str, Estimate]:
        """Return the means of `compute` with n and 95 % bootstrap interval.

        Args:
            resamples: Number of bootstrap resamples.
            seed: Seed of the resampling.

        Raises:
            ValueError: There is no example.
        """
        with self.sync_context(self.dist_sync_fn, should_sync=self.sync_on_compute):
            columns = self._telling(self.per_example())
        return {
            key: bootstrap_mean(values.tolist(), resamples, seed) for key, values in columns.items()
        }

    def per_example(self) -> dict[str, Tensor]:
        """Return this rank's values in the order of the updates.

        Returns:
            For each of `KEYS`, and for each with "_best" behind it, a float64 tensor [n].

        Raises:
            ValueError: There is no example.
        """
        # A list before a sync over ranks, one tensor after it.
        parts = self.values if isinstance(self.values, list) else [self.values]
        flat = torch.cat(parts) if parts else torch.empty(0)
        if not len(flat):
            raise ValueError("ROUGE needs at least one example: call update first.")
        columns = flat.reshape(-1, len(_COLUMNS)).unbind(dim=1)
        return dict(zip(_COLUMNS, columns, strict=True))

    def _telling(self, columns: dict[str, Tensor]) -> dict[str, Tensor]:
        """The columns without "_best" where no example has several references."""
        return columns if self.most_references > 1 else {key: columns[key] for key in KEYS}

    def _score(self, prediction: str, references: Sequence[str]) -> list[float]:
        """One example's numbers, in the order of `_COLUMNS`."""
        prediction = split_sentences(prediction)
        scores = [self._scorer.score(split_sentences(text), prediction) for text in references]
        values = [[float(score[key].fmeasure) for score in scores] for key in KEYS]
        return [*(sum(one) / len(one) for one in values), *map(max, values)]


def rouge(
    predictions: Sequence[str],
    dialogues: Sequence[str],
    references: Sequence[Sequence[str]],
    key: str = "rougeL",
    use_stemmer: bool = True,
) -> list[float]:
    """Give the ROUGE of each prediction, in the form in which PPO takes a reward.

    Args:
        predictions: B texts.
        dialogues: B texts; they play no part.
        references: B lists of at least one text.
        key: One of `KEYS`, or one with "_best" behind it.
        use_stemmer: Compare Porter stems instead of words.

    Returns:
        B numbers in [0, 1].

    Raises:
        ValueError: There is no such key.
    """
    if key.removesuffix(BEST) not in KEYS:
        raise ValueError(f"ROUGE has no {key!r}; there are {', '.join(KEYS)}, each with {BEST} too")
    metric = Rouge(use_stemmer)
    metric.update(predictions, references)
    return metric.per_example()[key].tolist()
