"""Examples for few-shot prompts: which train rows stand solved before which question.

A selector is told the train split once (:meth:`ExampleSelector.fit`) and then names, for each
question, the rows that it wants to show, the most wanted first. How many of them are shown is
decided where the tokens are counted (:class:`datamodules.encoding.Encoder`).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from datamodules.progress import in_chunks
from datamodules.reading import DataError, Row

NO_EXAMPLE = -1
"""Fills the places of a question that has fewer examples than it was to have."""

_CHUNK = 256


class ExampleSelector(ABC):
    """Chooses examples from the train split; subclasses say which (:meth:`rank`).

    Whatever a subclass ranks, a question is never shown its own dialogue solved. Two dialogues are
    the same if they differ in white space only.

    Attributes:
        shared: Whether all questions have the same examples. These rows are not trained on.
        best_last: Whether the most wanted example stands last, next to the question.
        pool: The rows that may be shown, known after :meth:`fit`; no dialogue is there twice.
        shots: Examples wanted for each question.
    """

    shared: ClassVar[bool] = False
    best_last: ClassVar[bool] = False

    def __init__(self) -> None:
        self.pool: list[Row] = []
        self.shots = 0
        self._places: dict[str, int] = {}

    def find_problem(self, shots: int) -> str | None:
        """Say why this many examples cannot be had, before any data is read."""
        return None

    def fit(self, train: Sequence[Row], shots: int, seed: int) -> None:
        """Take the train split.

        Args:
            train: Its rows, those with a dialogue that was there before among them.
            shots: Examples wanted for each question, at least 1.
            seed: The data's seed.

        Raises:
            DataError: If the split cannot give them.
        """
        first: dict[str, Row] = {}
        for row in train:
            first.setdefault(_normalise(row.dialogue), row)
        rows = list(first.values())
        if shots > len(rows):
            raise DataError(
                f"data: {shots} shots, but only {len(rows)} train dialogues; lower shots"
            )
        self.shots = shots
        self.pool = self.choose_pool(rows, seed)
        self._places = {_normalise(row.dialogue): i for i, row in enumerate(self.pool)}

    def choose_pool(self, rows: list[Row], seed: int) -> list[Row]:
        """Choose the rows that may be shown from train rows of different dialogues."""
        return rows

    def pick(self, questions: Sequence[Row], show_progress: bool = False) -> np.ndarray:
        """Choose the examples of some questions.

        Returns:
            [N, shots] int32, places in :attr:`pool`, the most wanted first; ``NO_EXAMPLE`` stands
            behind them where there are fewer.
        """
        picks = np.full((len(questions), self.shots), NO_EXAMPLE, dtype=np.int32)
        if self.shots == 0:
            return picks
        description = f"Choosing examples for {len(questions)} rows"
        for part in in_chunks(len(questions), _CHUNK, description, show_progress):
            chunk = questions[part]
            own = [self._places.get(_normalise(row.dialogue), NO_EXAMPLE) for row in chunk]
            ranks = zip(self.rank(chunk), own, strict=True)
            for row, (ranked, place) in enumerate(ranks, part.start):
                allowed = ranked[ranked != place][: self.shots]
                picks[row, : len(allowed)] = allowed
        return picks

    @abstractmethod
    def rank(self, questions: Sequence[Row]) -> np.ndarray:
        """Rank the pool for each of N questions.

        Returns:
            [N, K] places in :attr:`pool`, the most wanted first. A question's own dialogue is taken
            out afterwards, and what is left beyond ``shots`` is cut off.
        """

    def without_shown(self, rows: list[Row]) -> list[Row]:
        """Leave out of the rows to train on those that all questions have as an example."""
        if not self.shared:
            return rows
        return [row for row in rows if _normalise(row.dialogue) not in self._places]


class _SharedExamples(ExampleSelector):
    """The whole pool before every question, in its order."""

    shared = True

    def rank(self, questions: Sequence[Row]) -> np.ndarray:
        """Rank the pool in its own order."""
        return np.tile(np.arange(len(self.pool)), (len(questions), 1))


class RandomExamples(_SharedExamples):
    """Rows drawn once, the same for every question.

    Args:
        seed: Seed of the draw; None is the data's.

    Raises:
        ValueError: If the seed is negative.
    """

    def __init__(self, seed: int | None = None) -> None:
        super().__init__()
        if seed is not None and seed < 0:
            raise ValueError(f"RandomExamples: seed must be at least 0, got {seed}")
        self.seed = seed

    def choose_pool(self, rows: list[Row], seed: int) -> list[Row]:
        """Draw as many rows as are wanted."""
        generator = np.random.default_rng(seed if self.seed is None else self.seed)
        return [rows[i] for i in generator.choice(len(rows), self.shots, replace=False)]


class FixedExamples(_SharedExamples):
    """Rows of one's own choice, the same for every question, in the order of their ids.

    Args:
        ids: Ids of train rows. The first ``shots`` of them are shown; where they do not fit, the
            last are left out first.

    Raises:
        ValueError: If there is no id, or one twice.
    """

    def __init__(self, ids: list[str | int]) -> None:
        super().__init__()
        self.ids = [str(name) for name in ids]  # YAML reads 40 as a number
        if not ids or len(set(self.ids)) < len(ids):
            raise ValueError(
                f"FixedExamples: ids must be different ids of train rows, at least one; got {ids}"
            )

    def find_problem(self, shots: int) -> str | None:
        """Say that there are too few ids."""
        if shots <= len(self.ids):
            return None
        return f"shots is {shots}, but FixedExamples has {len(self.ids)} ids; name as many"

    def fit(self, train: Sequence[Row], shots: int, seed: int) -> None:
        """Find the rows of the ids.

        Raises:
            DataError: If the train split has not all of them, or two of them the same dialogue.
        """
        wanted = self.ids[:shots]
        rows = {row.id: row for row in train}
        if missing := [name for name in self.ids if name not in rows]:
            raise DataError(
                f"data: the train split has no row {', '.join(missing)} (FixedExamples.ids); it "
                f"has {len(rows)} rows, {next(iter(rows))} the first of them. Examples come from "
                "the train split only, as data.max_train_rows, min_dialogue_chars and "
                "max_dialogue_chars leave it"
            )
        if len({_normalise(rows[name].dialogue) for name in wanted}) < len(wanted):
            raise DataError("data: two of FixedExamples.ids have the same dialogue; keep one")
        super().fit([rows[name] for name in wanted], shots, seed)


class SimilarExamples(ExampleSelector):
    """The train dialogues most like the question.

    Liu et al. 2022, "What Makes Good In-Context Examples for GPT-3?", arXiv 2101.06804, with TF-IDF
    in place of their sentence embeddings: cosine over lower-case words, 1 + log of their counts,
    weights learnt from the train split. Of equally alike dialogues the earlier is taken.

    The nearest stands last, next to the question: models lean on the examples that they read last
    (Zhao et al. 2021, "Calibrate Before Use", arXiv 2102.09690).
    """

    best_last = True

    def __init__(self) -> None:
        super().__init__()
        self._vectorizer: Any = None
        self._vectors: Any = None

    def fit(self, train: Sequence[Row], shots: int, seed: int) -> None:
        """Learn the words of the train split.

        Raises:
            DataError: If it has fewer dialogues than are wanted, or no word.
        """
        super().fit(train, shots, seed)
        # Speaker tags and other words of every dialogue need no list: their weight is the least.
        vectorizer = TfidfVectorizer(sublinear_tf=True, token_pattern=r"\w+")
        words = vectorizer.build_analyzer()
        if not any(words(row.dialogue) for row in self.pool):
            raise DataError(
                "data: no train dialogue has a word to compare by; choose RandomExamples"
            )
        self._vectors = vectorizer.fit_transform(row.dialogue for row in self.pool)
        self._vectorizer = vectorizer

    def rank(self, questions: Sequence[Row]) -> np.ndarray:
        """Rank the nearest dialogues, one more than is wanted in case the question is among them.

        The vectors have length 1, so their products are the cosines. These are rounded, lest the
        last digits decide between equals.
        """
        vectors = self._vectorizer.transform(row.dialogue for row in questions)
        cosines = np.round((vectors @ self._vectors.T).toarray(), 9)
        return np.stack([_largest(row, self.shots + 1) for row in cosines])


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """Places of the largest values [P], in falling order, the earlier of equals first."""
    count = min(count, len(values))
    least = np.partition(values, -count)[-count]
    places = np.flatnonzero(values >= least)
    return places[np.argsort(-values[places], kind="stable")][:count]


def _normalise(dialogue: str) -> str:
    return " ".join(dialogue.split())
