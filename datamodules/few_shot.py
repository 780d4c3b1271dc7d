"""Few-shot examples: which train rows are shown, solved, before which question.

A selector reads the train split once (:meth:`ExampleSelector.fit`) and then ranks, for each
question, the rows to show. How many of them fit is decided where tokens are counted
(:class:`datamodules.encoding.Encoder`).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from datamodules.reading import DataError, Row, normalize_whitespace

_CHUNK = 256


class ExampleSelector(ABC):
    """Selects examples from the train split; subclasses implement :meth:`rank`.

    A question is never shown its own dialogue with the summary. Dialogues that differ in white
    space only are the same.

    Attributes:
        shared: Whether all questions have the same examples. Those rows are not trained on.
        best_last: Whether the best example comes last, next to the question.
        pool: The rows that may be shown, set by :meth:`fit`; without repeated dialogues.
        shots: Examples requested per question.
    """

    shared: ClassVar[bool] = False
    best_last: ClassVar[bool] = False

    def __init__(self) -> None:
        self.pool: list[Row] = []
        self.shots = 0
        self._positions: dict[str, int] = {}

    def fit(self, train: Sequence[Row], shots: int, seed: int) -> None:
        """Set the pool from the train split.

        Args:
            train: Rows of the train split; dialogues may be repeated.
            shots: Examples requested per question, at least 1.
            seed: The datamodule's seed.

        Raises:
            DataError: If the split has too few dialogues.
        """
        first: dict[str, Row] = {}
        for row in train:
            first.setdefault(normalize_whitespace(row.dialogue), row)
        if shots > len(first):
            raise DataError(
                f"data: {shots} shots, but only {len(first)} train dialogues; lower shots"
            )
        self.shots = shots
        self.pool = self.choose_pool(list(first.values()), seed)
        self._positions = {normalize_whitespace(row.dialogue): i for i, row in enumerate(self.pool)}

    def choose_pool(self, rows: list[Row], seed: int) -> list[Row]:
        """Choose the rows that may be shown from rows with different dialogues."""
        return rows

    def pick(self, questions: Sequence[Row]) -> list[list[int]]:
        """Choose the examples for questions: positions in :attr:`pool`, best first."""
        if self.shots == 0:
            return [[] for _ in questions]
        picks = []
        for start in range(0, len(questions), _CHUNK):  # bounds the memory of `rank`
            chunk = questions[start : start + _CHUNK]
            for question, ranked in zip(chunk, self.rank(chunk), strict=True):
                own = self._positions.get(normalize_whitespace(question.dialogue))
                picks.append([int(i) for i in ranked if i != own][: self.shots])
        return picks

    @abstractmethod
    def rank(self, questions: Sequence[Row]) -> Sequence[Sequence[int]]:
        """Rank the pool for each question, best first.

        :meth:`pick` removes the question's own dialogue and keeps the first ``shots``, so one more
        position than ``shots`` is enough.
        """

    def without_shown(self, rows: list[Row]) -> list[Row]:
        """Remove the rows that every question has as an example from the rows to train on."""
        if not self.shared:
            return rows
        return [row for row in rows if normalize_whitespace(row.dialogue) not in self._positions]


class RandomExamples(ExampleSelector):
    """Rows drawn by the seed, the same for every question."""

    shared = True

    def choose_pool(self, rows: list[Row], seed: int) -> list[Row]:
        """Draw as many rows as requested."""
        drawn = np.random.default_rng(seed).choice(len(rows), self.shots, replace=False)
        return [rows[i] for i in drawn]

    def rank(self, questions: Sequence[Row]) -> Sequence[Sequence[int]]:
        """Rank the pool in the order in which it was drawn."""
        return [range(len(self.pool))] * len(questions)


class SimilarExamples(ExampleSelector):
    """The train dialogues most similar to the question.

    Liu et al. 2022, "What Makes Good In-Context Examples for GPT-3?", arXiv 2101.06804, with TF-IDF
    instead of sentence embeddings: cosine similarity of lower-case words with 1 + log counts,
    weights learned from the train split. Of equally similar dialogues the earlier is taken.

    The most similar one comes last, next to the question: models rely most on the last examples
    (Zhao et al. 2021, "Calibrate Before Use", arXiv 2102.09690).
    """

    best_last = True

    def __init__(self) -> None:
        super().__init__()
        self._vectorizer: Any = None
        self._vectors: Any = None

    def fit(self, train: Sequence[Row], shots: int, seed: int) -> None:
        """Learn the vocabulary of the train split.

        Raises:
            DataError: If it has too few dialogues.
        """
        from sklearn.feature_extraction.text import TfidfVectorizer  # slow to import

        super().fit(train, shots, seed)
        # No stop words: speaker tags and other words of every dialogue get the lowest weight.
        self._vectorizer = TfidfVectorizer(sublinear_tf=True, token_pattern=r"\w+")
        self._vectors = self._vectorizer.fit_transform(row.dialogue for row in self.pool)

    def rank(self, questions: Sequence[Row]) -> Sequence[Sequence[int]]:
        """Rank the most similar dialogues, one more than requested.

        The vectors have length 1, so their products are cosines. They are rounded, so that
        floating-point noise does not decide between equals.
        """
        vectors = self._vectorizer.transform(row.dialogue for row in questions)
        cosines = np.round((vectors @ self._vectors.T).toarray(), 9)
        return [_largest(row, self.shots + 1) for row in cosines]


def _largest(values: np.ndarray, count: int) -> list[int]:
    """Return the positions of the largest values, descending, earlier ones first."""
    count = min(count, len(values))
    least = np.partition(values, -count)[-count]
    positions = np.flatnonzero(values >= least)
    return positions[np.argsort(-values[positions], kind="stable")][:count].tolist()
