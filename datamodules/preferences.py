"""PreferenceDataModule: rankings of completions, as pairs with the preferred one first."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, combinations
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import AutoTokenizer

from datamodules.batching import LengthBatchSampler, ResumableDataModule, pad
from datamodules.mini.generator import generate_rankings
from datamodules.sources import DataError, Split
from hub import resolve_model


@dataclass(frozen=True)
class Ranking:
    """Completions of one dialogue with their ranks, 1 the best; equal ranks are ties."""

    index: int
    id: str
    dialogue: str
    completions: list[str]
    ranks: list[int]


class PreferenceBatch(TypedDict):
    """What a dataloader yields: rankings, their N completions flattened.

    Keys:
        input_ids: [N, L] int64, padded on the right.
        attention_mask: [N, L] int64.
        pairs: [P, 2] int64, places of (preferred, other) among the N.
        weights: [P]; the pairs of one ranking share a weight of 1.
        index: Row number of each ranking in the split.
        ids: Its id.
        dialogues: Its dialogue.
        completions: Its completions.
        ranks: Their ranks.
    """

    input_ids: Tensor
    attention_mask: Tensor
    pairs: Tensor
    weights: Tensor
    index: Tensor
    ids: list[str]
    dialogues: list[str]
    completions: list[list[str]]
    ranks: list[list[int]]


def take_rankings(batch: PreferenceBatch, start: int, stop: int) -> PreferenceBatch:
    """Take the rankings from ``start`` to before ``stop``, their completions and their pairs."""
    places = [0, *accumulate(map(len, batch["completions"]))]
    first, behind = places[start], places[stop]
    own = (batch["pairs"][:, 0] >= first) & (batch["pairs"][:, 0] < behind)
    return PreferenceBatch(
        input_ids=batch["input_ids"][first:behind],
        attention_mask=batch["attention_mask"][first:behind],
        pairs=batch["pairs"][own] - first,
        weights=batch["weights"][own],
        index=batch["index"][start:stop],
        ids=batch["ids"][start:stop],
        dialogues=batch["dialogues"][start:stop],
        completions=batch["completions"][start:stop],
        ranks=batch["ranks"][start:stop],
    )


class PreferenceDataModule(ResumableDataModule):
    """Rankings from ``mini`` or from a folder with ``{train,validation,test}.jsonl``.

    A line holds ``id``, ``dialogue``, ``completions`` (two or more texts) and ``ranks`` (as many
    whole numbers, 1 the best).

    Args:
        source: ``mini``, or a folder.
        tokenizer: The reward model's: hub id, folder, or ``mini``.
        batch_size: Rankings in one step, on each rank.
        max_length: Longest completion in tokens; the rest is cut off.
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
        seed: int = 42,
    ) -> None:
        super().__init__()
        if batch_size < 1 or max_length < 3:
            raise ValueError(
                "batch_size must be at least 1 and max_length at least 3, "
                f"got {batch_size} and {max_length}"
            )
        self.source = source
        self.tokenizer_name = tokenizer
        self.batch_size = batch_size
        self.max_length = max_length
        self.seed = seed
        self.tokenizer: Any = None
        self.splits: dict[Split, list[Ranking]] = {}

    @classmethod
    def find_problems(cls, init_args: Any) -> list[str]:
        """List why the source cannot be used, before anything is loaded."""
        folder = Path(init_args.source)
        if init_args.source == "mini" or folder.is_dir():
            return []
        return [f"data.source: there is no folder {init_args.source!r} with rankings"]

    def setup(self, stage: str) -> None:
        """Read the rankings that a stage needs."""
        self.tokenizer = AutoTokenizer.from_pretrained(
            resolve_model(self.tokenizer_name, "classifier"), trust_remote_code=False
        )
        needed: tuple[Split, ...] = ("train", "validation") if stage == "fit" else ("test",)
        for split in ("validation",) if stage == "validate" else needed:
            self.splits[split] = read_rankings(self.source, split)

    def train_dataloader(self) -> DataLoader[Any]:
        """Give shuffled batches."""
        return self.resume_loader(self._loader("train", shuffle=True))

    def val_dataloader(self) -> DataLoader[Any]:
        """Give the validation rankings."""
        return self._loader("validation")

    def test_dataloader(self) -> DataLoader[Any]:
        """Give the test rankings."""
        return self._loader("test")

    def _loader(self, split: Split, shuffle: bool = False) -> DataLoader[Any]:
        rankings = self.splits[split]
        trainer = self.trainer
        sampler = LengthBatchSampler(
            [max(map(len, ranking.completions)) for ranking in rankings],
            self.batch_size,
            shuffle,
            self.seed,
            trainer.world_size if trainer else 1,
            trainer.global_rank if trainer else 0,
            self.accumulate if shuffle else 1,
        )
        return DataLoader(
            rankings,  # type: ignore[arg-type] # a list is data set enough
            batch_sampler=sampler,
            collate_fn=self.collate,
        )

    def collate(self, rankings: Sequence[Ranking]) -> PreferenceBatch:
        """Tokenise the completions of some rankings and lay out their pairs."""
        texts = [text for ranking in rankings for text in ranking.completions]
        settings = {"truncation": True, "max_length": self.max_length}
        # An empty batch is legal (see LengthBatchSampler), and no text none of the tokenizer's.
        tokens = self.tokenizer(texts, **settings)["input_ids"] if texts else []
        rows = [np.asarray(row) for row in tokens]
        pairs, weights = lay_out_pairs([ranking.ranks for ranking in rankings])
        return PreferenceBatch(
            input_ids=pad(rows, self.tokenizer.pad_token_id),
            attention_mask=pad([np.ones_like(row) for row in rows], 0),
            pairs=pairs,
            weights=weights,
            index=torch.tensor([ranking.index for ranking in rankings], dtype=torch.int64),
            ids=[ranking.id for ranking in rankings],
            dialogues=[ranking.dialogue for ranking in rankings],
            completions=[ranking.completions for ranking in rankings],
            ranks=[ranking.ranks for ranking in rankings],
        )


def lay_out_pairs(rankings: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Give every pair of each ranking with the preferred one first; ties are no pair.

    Args:
        rankings: The ranks of each ranking's completions, 1 the best.

    Returns:
        Pairs [P, 2] of places among all completions, and weights [P] that sum to 1 a ranking.
    """
    pairs: list[tuple[int, int]] = []
    weights: list[float] = []
    start = 0
    for ranks in rankings:
        own = [
            (start + a, start + b) if ranks[a] < ranks[b] else (start + b, start + a)
            for a, b in combinations(range(len(ranks)), 2)
            if ranks[a] != ranks[b]
        ]
        pairs += own
        weights += [1 / len(own)] * len(own)
        start += len(ranks)
    return torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2), torch.tensor(weights)


def read_rankings(source: str, split: Split) -> list[Ranking]:
    """Read the rankings of a split.

    Raises:
        DataError: If the file is missing, or lines of it are not rankings (each with its number).
    """
    if source == "mini":
        return [
            Ranking(index, row["id"], row["dialogue"], row["completions"], row["ranks"])
            for index, row in enumerate(generate_rankings(split))
        ]
    file = Path(source) / f"{split}.jsonl"
    if not file.is_file():
        raise DataError(f"{file} does not exist; a folder of rankings has {split}.jsonl")
    rankings: list[Ranking] = []
    problems: list[str] = []
    for number, line in enumerate(file.read_bytes().splitlines(), start=1):
        try:
            rankings.append(_parse(line, len(rankings)))
        except (ValueError, KeyError, TypeError) as error:
            problems.append(f"{file}:{number}: {error!r}")
    if problems or not rankings:
        found = "\n- ".join(problems[:10]) or f"{file} is empty"
        raise DataError(
            f"{len(problems)} line(s) of {file} are not rankings; a line is "
            '{"id": "1", "dialogue": "...", "completions": ["...", "..."], "ranks": [1, 2]}'
            f"\n- {found}"
        )
    return rankings


def _parse(line: bytes, index: int) -> Ranking:
    row = json.loads(line.decode("utf-8"))
    completions, ranks = row["completions"], row["ranks"]
    if len(completions) != len(ranks) or len(set(ranks)) < 2:
        raise ValueError("needs one rank a completion, and two that differ")
    if not all(isinstance(text, str) and text.strip() for text in completions):
        raise ValueError("a completion is empty or no text")
    if not all(isinstance(rank, int) for rank in ranks):
        raise ValueError("a rank is no whole number")
    return Ranking(index, str(row["id"]), str(row["dialogue"]), completions, ranks)
