"""ROUGE as a torchmetrics metric that collects over batches and ranks, and as a reward."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from metrics.intervals import Estimate, estimate_columns
from metrics.rouge_scores import BEST, KEYS, score_rouge

_NAMES = (*KEYS, *(key + BEST for key in KEYS))


class Rouge(Metric):
    """Collect the ROUGE of each example, over batches and over all ranks.

    `compute`, `per_example` and `estimates` gather the values of all ranks, so each rank must call
    them. A rank without examples must call `update` with empty lists. The results have "<key>_best"
    only if any example has several references, because otherwise it is the same number.

    Args:
        use_stemmer: Compare Porter stems instead of words.
        **settings: See `torchmetrics.Metric`.
    """

    full_state_update = False
    values: list[Tensor]
    most_references: Tensor

    def __init__(self, use_stemmer: bool = True, **settings: Any) -> None:
        super().__init__(**settings)
        self.use_stemmer = use_stemmer
        self.add_state("values", [], dist_reduce_fx="cat")
        self.add_state("most_references", torch.tensor(0), dist_reduce_fx="max")

    def update(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
        """Score B predictions against their references.

        Args:
            predictions: One text per example [B].
            references: At least one text per example [B].

        Raises:
            ValueError: As for `score_rouge`.
        """
        scores = score_rouge(predictions, references, self.use_stemmer, with_best=True)
        columns = [scores[name] for name in _NAMES]
        self.values.append(torch.tensor(columns, dtype=torch.float64, device=self.device).T)
        most = max(map(len, references), default=0)
        self.most_references = self.most_references.clamp(min=most)

    def compute(self) -> dict[str, Tensor]:
        """Return the mean of each value, as a fraction of 1."""
        return {name: column.mean() for name, column in self._columns().items()}

    def per_example(self) -> dict[str, list[float]]:
        """Return the values of each example, those of rank 0 first, in the order of the updates."""
        with self.sync_context():
            return {name: column.tolist() for name, column in self._columns().items()}

    def estimates(self) -> dict[str, Estimate]:
        """Return each mean with the number of examples and its bootstrap interval."""
        return estimate_columns(self.per_example())

    def _columns(self) -> dict[str, Tensor]:
        """Return the collected values by name, float64 [N] each."""
        names = _NAMES if self.most_references > 1 else KEYS
        columns = dim_zero_cat(self.values).T
        return dict(zip(names, columns, strict=False))


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
