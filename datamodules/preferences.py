"""PreferenceDataModule: rankings of completions, as pairs with the preferred one first."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor

from datamodules import sources
from datamodules.classifier_data import ClassifierDataModule
from datamodules.consensus import Consensus, Pair, Ranking
from datamodules.encoding import encode_texts
from datamodules.progress import in_chunks
from datamodules.rankings import RankingReader
from datamodules.reading import ColumnNames, OnBadRow, Split
from datamodules.shares import find_problems
from datamodules.splits import SplitReader


class Format(NamedTuple):
    """How a reward model is shown a completion; whoever asks it later has to do the same.

    with_dialogue: as the second text of a pair with its dialogue. max_length: most tokens.
    """

    with_dialogue: bool
    max_length: int


class PreferenceBatch(TypedDict):
    """What a dataloader yields: B rankings, their N completions one after the other.

    Keys:
        inputs: What the classifier takes, [N, L] int64 each.
        pairs: [P, 2] int64, places of (preferred, other) among the N.
        distances: [P], how many ranks they are apart.
        weights: [P]; the pairs of one ranking share a weight of 1.
        index: [B] int64, row number of each ranking in the split.
        ids: Their ids.
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
            answers, which is split by dialogue. ``datamodules/answers.py`` has what a line is.
        tokenizer: The reward model's: hub id, folder, or ``mini``.
        batch_size: Rankings in one step, on each rank.
        max_length: Most tokens of what the model is shown; the rest is cut off.
        with_dialogue: Show each completion as the second text of a pair with its dialogue.
        references: Source of the reference summaries whose mean reward becomes 0 after training,
            as ``DialogSumDataModule`` takes it; None leaves the level of the rewards as it is.
        consensus: How the answers of several annotators become one ranking: by their mean ranks,
            or by the majority for each pair.
        validation_fraction: Share of the dialogues of a single file that are for validation.
        test_fraction: Share of them that are for the test.
        split_seed: Which dialogues these are.
        on_bad_row: Stop at lines that are no answers, or skip and count them.
        seed: Seed of the order.

    Raises:
        ValueError: If a setting is out of range.
    """

    def __init__(
        self,
        source: str,
        tokenizer: str,
        batch_size: int = 16,
        max_length: int = 128,
        with_dialogue: bool = False,
        references: str | None = None,
        consensus: Consensus = "mean_rank",
        validation_fraction: float = 0.1,
        test_fraction: float = 0.1,
        split_seed: int = 0,
        on_bad_row: OnBadRow = "stop",
        seed: int = 42,
    ) -> None:
        super().__init__(tokenizer, batch_size, max_length, seed)
        self.reader = RankingReader(
            source, consensus, on_bad_row, validation_fraction, test_fraction, split_seed
        )
        self.format = Format(with_dialogue, max_length)
        self.references = references
        self._descriptions: dict[str, dict[str, Any]] = {}

    @classmethod
    def find_problems(cls, init_args: Any) -> list[str]:
        """List why the source cannot be used, before anything is loaded."""
        problems = find_problems(init_args.source, "answers")
        if init_args.references is not None:
            problems += [
                f"data.references: {problem}; null leaves the level of the rewards as it is"
                for problem in sources.find_problems(init_args.references)
            ]
        return problems

    def read_splits(self, splits: Sequence[Split]) -> None:
        """Read the rankings of some splits.

        Raises:
            DataError: If they cannot be had, or hold bad lines.
        """
        for split, found in self.reader.read(splits).items():
            self.splits[split] = found.rankings
            self._descriptions[split] = found.description

    def describe(self) -> dict[str, dict[str, Any]]:
        """Say what the rankings of each split that was read were made of, for the run's summary."""
        return self._descriptions

    def length(self, row: Ranking) -> int:
        """Give the characters of the longest input of a ranking."""
        context = len(row.dialogue) if self.format.with_dialogue else 0
        return context + max(map(len, row.completions))

    def collate(self, rows: Sequence[Ranking]) -> PreferenceBatch:
        """Tokenise the completions of some rankings and lay out their pairs."""
        texts = [text for ranking in rows for text in ranking.completions]
        dialogues = [ranking.dialogue for ranking in rows for _ in ranking.completions]
        pairs, distances, weights = lay_out_pairs(rows)
        return PreferenceBatch(
            # An empty batch is legal: see LengthBatchSampler.
            inputs=self.encode(texts, dialogues) if texts else {},
            pairs=pairs,
            distances=distances,
            weights=weights,
            index=torch.tensor([ranking.index for ranking in rows], dtype=torch.int64),
            ids=[ranking.id for ranking in rows],
            rankings=list(rows),
        )

    def encode(self, texts: Sequence[str], dialogues: Sequence[str]) -> dict[str, Tensor]:
        """Tokenise N texts, each with its dialogue where the model is to see it."""
        contexts = dialogues if self.format.with_dialogue else None
        return encode_texts(self.tokenizer, texts, contexts, self.format.max_length)

    def reference_batches(self, batch_size: int = 64) -> Iterator[dict[str, Tensor]]:
        """Give the train split's reference summaries as the classifier takes them, if any."""
        if self.references is None:
            return
        rows = SplitReader(self.references, ColumnNames(), "stop", 0.1, self.seed).read("train")
        texts = [(text, row.dialogue) for row in rows for text in row.references]
        texts.sort(key=lambda text: len(text[0]) + self.format.with_dialogue * len(text[1]))
        first_rank = self.trainer is None or self.trainer.is_global_zero
        title = f"Scoring {len(texts)} references"
        for chunk in in_chunks(len(texts), batch_size, title, first_rank):
            part = texts[chunk]
            yield self.encode([text for text, _ in part], [dialogue for _, dialogue in part])


def lay_out_pairs(rankings: Sequence[Ranking]) -> tuple[Tensor, Tensor, Tensor]:
    """Give the pairs of all rankings, with their distances and weights.

    Returns:
        Pairs [P, 2] of places among all completions, distances [P] in ranks, and weights [P] that
        sum to 1 a ranking, so that long rankings do not dominate.
    """
    pairs: list[Pair] = []
    weights: list[float] = []
    start = 0
    for ranking in rankings:
        pairs += [Pair(start + j, start + k, distance) for j, k, distance in ranking.pairs]
        weights += [1 / len(ranking.pairs)] * len(ranking.pairs)
        start += len(ranking.completions)
    return (
        torch.tensor([pair[:2] for pair in pairs], dtype=torch.int64).reshape(-1, 2),
        torch.tensor([pair.distance for pair in pairs], dtype=torch.float32),
        torch.tensor(weights, dtype=torch.float32),
    )
