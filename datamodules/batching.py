"""Batches: rows of like length together, padded to a common length, dealt out to the ranks."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, TypeVar

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

IGNORED_LABEL = -100
MULTIPLE = 8
"""Lengths are padded to a multiple of this by default: tensor cores want it, and shapes repeat."""

BUCKET_BATCHES = 50
"""Global batches per bucket: rows are sorted by length within a bucket, not over the epoch."""


@dataclass(frozen=True, slots=True)
class Example:
    """One row, tokenised; ``source`` and ``target`` are [length] token ids, both with EOS."""

    index: int
    id: str
    dialogue: str
    references: list[str]
    source: np.ndarray
    target: np.ndarray


class Batch(TypedDict):
    """What a dataloader yields: B rows, source length S and target length T.

    Keys:
        input_ids: [B, S] int64, padded on the right.
        attention_mask: [B, S] int64, 0 on padding.
        labels: [B, T] int64 of the first reference, ending in EOS, padded with -100.
        index: [B] int64, row number in the split; restores the order after bucketing and ranks.
        ids: B row ids.
        dialogues: B dialogues, whole and without a prompt.
        references: B lists of reference summaries.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    index: Tensor
    ids: list[str]
    dialogues: list[str]
    references: list[list[str]]


class Collator:
    """Pads examples to a batch.

    Args:
        pad_token_id: The token that fills up ``input_ids``.
        multiple: Source and target lengths are padded to a multiple of this.
    """

    def __init__(self, pad_token_id: int, multiple: int = MULTIPLE) -> None:
        self.pad_token_id = pad_token_id
        self.multiple = multiple

    def __call__(self, examples: Sequence[Example]) -> Batch:
        """Make one batch of the examples, in their order."""
        sources = [example.source for example in examples]
        return Batch(
            input_ids=pad(sources, self.pad_token_id, self.multiple),
            attention_mask=pad([np.ones_like(source) for source in sources], 0, self.multiple),
            labels=pad([example.target for example in examples], IGNORED_LABEL, self.multiple),
            index=torch.tensor([example.index for example in examples]),
            ids=[example.id for example in examples],
            dialogues=[example.dialogue for example in examples],
            references=[example.references for example in examples],
        )


def pad(rows: Sequence[np.ndarray], value: int, multiple: int = MULTIPLE) -> Tensor:
    """Stack rows of different lengths into [B, L] int64, filled with ``value`` on the right."""
    longest = max(len(row) for row in rows)
    width = -(-longest // multiple) * multiple
    padded = torch.full((len(rows), width), value, dtype=torch.int64)
    for row, target in zip(rows, padded, strict=True):
        target[: len(row)] = torch.from_numpy(row.astype(np.int64))
    return padded


Loader = TypeVar("Loader", bound=DataLoader[Any])


class LengthBatchSampler(Sampler[list[int]]):
    """Batches of rows of like length, the same for one rank as for many.

    The n rows are cut into global batches of nearly equal size, at most ``batch_size * world_size``
    rows, and every global batch is dealt out to the ranks. So each row comes once per epoch, all
    ranks have as many batches, and (batch 4, 2 ranks) takes the steps of (batch 8, 1 rank). The
    order is a function of the arguments and the epoch only.

    With one row per rank and n no multiple of the ranks, a rank may get two rows: no rank may ever
    stand without one.

    Args:
        lengths: Length of each row, in tokens.
        batch_size: Rows per batch and rank.
        shuffle: New batches each epoch; otherwise the longest rows first, so that a batch that does
            not fit the memory fails at once.
        seed: Seed of the shuffle.
        world_size: Number of ranks.
        rank: This rank.

    Raises:
        ValueError: If there are fewer rows than ranks.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        shuffle: bool,
        seed: int = 0,
        world_size: int = 1,
        rank: int = 0,
    ) -> None:
        if len(lengths) < world_size:
            raise ValueError(
                f"{len(lengths)} row(s) cannot be dealt out to {world_size} ranks, each needs one; "
                f"use fewer devices (--trainer.devices {max(1, len(lengths))}) or more rows"
            )
        self.lengths = np.asarray(lengths)
        self.shuffle = shuffle
        self.seed = seed
        self.world_size = world_size
        self.rank = rank
        self.epoch = 0
        self.start = 0
        rows = len(lengths)
        batches = min(-(-rows // (batch_size * world_size)), rows // world_size)
        self.bounds = [batch * rows // batches for batch in range(batches + 1)]

    @property
    def sampler(self) -> "LengthBatchSampler":
        """This sampler: Lightning calls ``set_epoch`` on a batch sampler's ``sampler`` only."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __iter__(self) -> Iterator[list[int]]:
        start, self.start = self.start, 0  # a resumed epoch goes on where it was, the next is whole
        for batch in self.global_batches()[start:]:
            yield batch[self.rank :: self.world_size].tolist()

    def global_batches(self) -> list[np.ndarray]:
        """Give this epoch's batches over all ranks."""
        bounds = self.bounds
        if not self.shuffle:
            order = np.argsort(-self.lengths, kind="stable")
            return [order[a:b] for a, b in itertools.pairwise(bounds)]
        generator = np.random.default_rng((self.seed, self.epoch))
        order = generator.permutation(len(self.lengths))
        for first in range(0, len(self), BUCKET_BATCHES):
            bucket = slice(bounds[first], bounds[min(first + BUCKET_BATCHES, len(self))])
            rows = order[bucket]
            order[bucket] = rows[np.argsort(self.lengths[rows], kind="stable")]
        batches = [order[a:b] for a, b in itertools.pairwise(bounds)]
        return [batches[place] for place in generator.permutation(len(batches))]


class ResumableDataModule(L.LightningDataModule):
    """A datamodule whose training goes on in the middle of an epoch where a checkpoint left it.

    Without it a resumed epoch would see its first batches twice and its last ones never. Lightning
    would also ask a loader for its state, but loses it where the optimizer's schedule asks for the
    number of steps; a datamodule's state is restored before that.
    """

    _taken = 0
    _batches = 1

    def resume_loader(self, loader: Loader) -> Loader:
        """Make a training loader leave out the batches that a checkpoint says were learnt from."""
        sampler = loader.batch_sampler
        assert isinstance(sampler, LengthBatchSampler)  # noqa: S101 (for the type checker)
        sampler.start, self._taken = self._taken, 0
        self._batches = len(sampler)
        return loader

    def state_dict(self) -> dict[str, int]:
        """Give the number of batches of the running epoch that were learnt from.

        That is Lightning's count of processed batches: one that was fetched when the run broke off
        has to come again.
        """
        if self.trainer is None:
            return {"taken": 0}
        progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress.current
        return {"taken": progress.processed % self._batches}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Take the number of batches from a checkpoint."""
        self._taken = state_dict["taken"]
