"""Few-shot examples: which train rows are shown, solved, before which question.

A selector is given the train split once (:meth:`ExampleSelector.fit`) and then ranks, for each
question, the rows to show. How many of them fit is decided where tokens are counted
(:class:`datamodules.encoding.Encoder`).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from datamodules.reading import DataError, Row, normalize_whitespace

NO_EXAMPLE = -1
"""Fills up the row of a question that has fewer examples than requested."""

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

    def find_problem(self, shots: int) -> str | None:
        """Return why this selector cannot provide that many examples, or None."""
        return None

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
        rows = list(first.values())
        if shots > len(rows):
            raise DataError(
                f"data: {shots} shots, but only {len(rows)} train dialogues; lower shots"
            )
        self.shots = shots
        self.pool = self.choose_pool(rows, seed)
        self._positions = {normalize_whitespace(row.dialogue): i for i, row in enumerate(self.pool)}

    def choose_pool(self, rows: list[Row], seed: int) -> list[Row]:
        """Choose the rows that may be shown from rows with different dialogues."""
        return rows

    def pick(self, questions: Sequence[Row]) -> np.ndarray:
        """Choose the examples for N questions.

        Returns:
            [N, shots] int32 positions in :attr:`pool`, best first, filled up with ``NO_EXAMPLE``.
        """
        picks = np.full((len(questions), self.shots), NO_EXAMPLE, dtype=np.int32)
        if self.shots == 0:
            return picks
        for start in range(0, len(questions), _CHUNK):  # bounds the memory of `rank`
            chunk = questions[start : start + _CHUNK]
            for row, (question, ranked) in enumerate(zip(chunk, self.rank(chunk), strict=True)):
                own = self._positions.get(normalize_whitespace(question.dialogue), NO_EXAMPLE)
                allowed = ranked[ranked != own][: self.shots]
                picks[start + row, : len(allowed)] = allowed
        return picks

    @abstractmethod
    def rank(self, questions: Sequence[Row]) -> np.ndarray:
        """Rank the pool for each of N questions.

        Returns:
            [N, K] positions in :attr:`pool`, best first. :meth:`pick` removes the question's own
            dialogue and keeps the first ``shots``.
        """

    def without_shown(self, rows: list[Row]) -> list[Row]:
        """Remove the rows that every question has as an example from the rows to train on."""
        if not self.shared:
            return rows
        return [row for row in rows if normalize_whitespace(row.dialogue) not in self._positions]


class _SharedExamples(ExampleSelector):
    """The whole pool before every question, in a fixed order."""

    shared = True

    def rank(self, questions: Sequence[Row]) -> np.ndarray:
        """Rank the pool in its own order."""
        return np.tile(np.arange(len(self.pool)), (len(questions), 1))


class RandomExamples(_SharedExamples):
    """Randomly drawn rows, the same for every question.

    Args:
        seed: Seed of the draw; None is the datamodule's seed.

    Raises:
        ValueError: If the seed is negative.
    """

    def __init__(self, seed: int | None = None) -> None:
        super().__init__()
        if seed is not None and seed < 0:
            raise ValueError(f"RandomExamples: seed must be at least 0, got {seed}")
        self.seed = seed

    def choose_pool(self, rows: list[Row], seed: int) -> list[Row]:
        """Draw as many rows as requested."""
        generator = np.random.default_rng(seed if self.seed is None else self.seed)
        return [rows[i] for i in generator.choice(len(rows), self.shots, replace=False)]


class FixedExamples(_SharedExamples):
    """Rows given by id, the same for every question, in the order of the ids.

    Args:
        ids: Ids of train rows. The first ``shots`` are shown; if they do not fit, the last are
            left out first.

    Raises:
        ValueError: If there is no id, or a repeated one.
    """

    def __init__(self, ids: list[str | int]) -> None:
        super().__init__()
        self.ids = [str(name) for name in ids]  # YAML reads 40 as a number
        if not ids or len(set(self.ids)) < len(ids):
            raise ValueError(
                f"FixedExamples: ids must be different ids of train rows, at least one; got {ids}"
            )

    def find_problem(self, shots: int) -> str | None:
        """Return a message if there are fewer ids than shots."""
        if shots <= len(self.ids):
            return None
        return f"shots is {shots}, but FixedExamples has {len(self.ids)} ids; name as many"

    def fit(self, train: Sequence[Row], shots: int, seed: int) -> None:
        """Find the rows of the ids.

        Raises:
            DataError: If an id is not in the train split, or two have the same dialogue.
        """
        rows = {row.id: row for row in train}
        if missing := [name for name in self.ids if name not in rows]:
            raise DataError(
                f"data: the train split has no row {', '.join(missing)} (FixedExamples.ids); it "
                f"has {len(rows)} rows, the first is {next(iter(rows))}. Examples come from the "
                "train split only, after data.max_train_rows, min_dialogue_chars and "
                "max_dialogue_chars"
            )
        wanted = [rows[name] for name in self.ids[:shots]]
        if len({normalize_whitespace(row.dialogue) for row in wanted}) < len(wanted):
            raise DataError("data: two of FixedExamples.ids have the same dialogue; keep one")
        super().fit(wanted, shots, seed)


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
            DataError: If it has too few dialogues, or no words.
        """
        from sklearn.feature_extraction.text import TfidfVectorizer  # slow to import

        super().fit(train, shots, seed)
        # No stop words: speaker tags and other words of every dialogue get the lowest weight.
        vectorizer = TfidfVectorizer(sublinear_tf=True, token_pattern=r"\w+")
        words = vectorizer.build_analyzer()
        if not any(words(row.dialogue) for row in self.pool):
            raise DataError(
                "data: no train dialogue has a word to compare by; choose RandomExamples"
            )
        self._vectors = vectorizer.fit_transform(row.dialogue for row in self.pool)
        self._vectorizer = vectorizer

    def rank(self, questions: Sequence[Row]) -> np.ndarray:
        """Rank the most similar dialogues, one more than requested.

        The vectors have length 1, so their products are cosines. They are rounded, so that
        floating-point noise does not decide between equals.
        """
        vectors = self._vectorizer.transform(row.dialogue for row in questions)
        cosines = np.round((vectors @ self._vectors.T).toarray(), 9)
        return np.stack([_largest(row, self.shots + 1) for row in cosines])


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """Return the positions of the largest values, descending, earlier ones first."""
    count = min(count, len(values))
    least = np.partition(values, -count)[-count]
    positions = np.flatnonzero(values >= least)
    return positions[np.argsort(-values[positions], kind="stable")][:count]
