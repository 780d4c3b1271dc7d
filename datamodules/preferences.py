"""PreferenceDataModule: rankings as preference pairs, for a reward model."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypedDict

import torch
from jaxtyping import Float, Int
from torch import Tensor

from datamodules import sources
from datamodules.base import ClassifierDataModule
from datamodules.consensus import Ranking, RankingReader
from datamodules.reading import Split
from datamodules.splits import DialogueReader


class Format(NamedTuple):
    """How a reward model reads a completion, in training and afterwards.

    Attributes:
        with_dialogue: As the second text of a pair with its dialogue.
        max_length: Maximum number of tokens.
    """

    with_dialogue: bool
    max_length: int


class PreferenceBatch(TypedDict):
    """A batch of B rankings; their N completions are concatenated.

    Keys:
        inputs: The classifier's inputs, [N, L] int64 each.
        pairs: [P, 2] int64, positions of (preferred, other) among the N completions.
        distances: [P] float32, distance of the two in ranks.
        weights: [P] float32; the pairs of one ranking sum to 1.
        index: [B] int64, row number of each ranking in the split.
        ids: B ids.
        rankings: The rankings themselves.
    """

    inputs: dict[str, Tensor]
    pairs: Tensor
    distances: Tensor
    weights: Tensor
    index: Tensor
    ids: list[str]
    rankings: list[Ranking]


class PreferenceDataModule(ClassifierDataModule):
    """Rankings for a reward model: people's answers, or the miniature's.

    Args:
        source: ``mini``; a folder with ``{train,validation,test}.{jsonl,csv}``; or one file of
            answers, which is split by dialogue. ``datamodules/rankings.py`` describes a line.
        tokenizer: The reward model's tokenizer: hub id, folder, or ``mini``.
        with_dialogue: Show each completion as the second text of a pair with its dialogue.
        references: Source of the reference summaries (as for ``DialogSumDataModule``) whose mean
            reward is shifted to 0 after training; None leaves the rewards as they are.
        **settings: See :class:`ClassifierDataModule`.

    Raises:
        ValueError: If a setting is out of range.
    """

    kind = "rankings"

    def __init__(
        self,
        source: str,
        tokenizer: str,
        with_dialogue: bool = False,
        references: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(source, tokenizer, **settings)
        self.reader = RankingReader(source, self.on_bad_row)
        self.format = Format(with_dialogue, self.max_length)
        self.references = references

    @classmethod
    def find_problems(cls, init_args: Any) -> list[str]:
        """Return why the sources cannot be used, before anything is loaded."""
        problems = super().find_problems(init_args)
        if init_args.references is not None:
            problems += [
                f"data.references: {problem}; null leaves the rewards as they are"
                for problem in sources.find_problems(init_args.references)
            ]
        return problems

    def read_split(self, split: Split) -> list[Ranking]:
        """Read the rankings of a split, and count what they were made from."""
        rankings, self.descriptions[split] = self.reader.read_rankings(split)
        return rankings

    def length(self, row: Ranking) -> int:
        """Return the number of characters of the longest input of a ranking."""
        context = len(row.dialogue) if self.format.with_dialogue else 0
        return context + max(map(len, row.completions))

    def collate(self, rows: Sequence[Ranking]) -> PreferenceBatch:
        """Tokenize the completions of some rankings and list their pairs."""
        texts = [text for ranking in rows for text in ranking.completions]
        dialogues = [ranking.dialogue for ranking in rows for _ in ranking.completions]
        pairs, distances, weights = stack_pairs(rows)
        return PreferenceBatch(
            inputs=self.encode(texts, dialogues),
            pairs=pairs,
            distances=distances,
            weights=weights,
            index=torch.tensor([ranking.index for ranking in rows], dtype=torch.int64),
            ids=[ranking.id for ranking in rows],
            rankings=list(rows),
        )

    def encode(self, texts: Sequence[str], dialogues: Sequence[str]) -> dict[str, Tensor]:
        """Tokenize N texts, each with its dialogue if the model is to see it."""
        return self.tokenize(texts, dialogues if self.format.with_dialogue else None)

    def reference_batches(self, batch_size: int = 64) -> Iterator[dict[str, Tensor]]:
        """Yield the train split's reference summaries, if any, as model inputs."""
        if self.references is None:
            return
        rows = DialogueReader(self.references).read("train")
        texts = [(text, row.dialogue) for row in rows for text in row.references]
        texts.sort(key=lambda text: len(text[0]) + self.format.with_dialogue * len(text[1]))
        for start in range(0, len(texts), batch_size):
            part = texts[start : start + batch_size]
            yield self.encode([text for text, _ in part], [dialogue for _, dialogue in part])


def stack_pairs(
    rankings: Sequence[Ranking],
) -> tuple[Int[Tensor, "P 2"], Float[Tensor, " P"], Float[Tensor, " P"]]:
    """Return the pairs of all rankings, with their distances and weights.

    Returns:
        Pairs [P, 2] of positions among all completions, distances [P] in ranks, and weights [P]
        that sum to 1 per ranking, so that long rankings do not dominate.
    """
    pairs: list[tuple[int, int]] = []
    distances: list[float] = []
    weights: list[float] = []
    start = 0
    for ranking in rankings:
        for preferred, other, distance in ranking.pairs:
            pairs.append((start + preferred, start + other))
            distances.append(distance)
            weights.append(1 / len(ranking.pairs))
        start += len(ranking.completions)
    return (
        torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2),
        torch.tensor(distances, dtype=torch.float32),
        torch.tensor(weights, dtype=torch.float32),
    )
