"""Batches of rows with similar lengths, padded, and distributed over the ranks."""

import itertools
import logging
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from torchdata.stateful_dataloader import StatefulDataLoader

from datamodules.reading import Split

log = logging.getLogger(__name__)

STAGES: dict[str, tuple[Split, ...]] = {
    "fit": ("train", "validation"), "validate": ("validation",), "test": ("test",),
    "predict": ("test",),
}  # fmt: skip
"""The splits that each stage of a Trainer needs."""

IGNORED_LABEL = -100
MULTIPLE = 8
"""Padded lengths are multiples of this: tensor cores want it, and fewer shapes occur."""

BUCKET_STEPS = 50
"""Optimizer steps per bucket; rows are sorted by length within a bucket."""


@dataclass(frozen=True, slots=True)
class Example:
    """A tokenized row; ``source`` and ``target`` are [length] token ids with EOS."""

    index: int
    id: str
    dialogue: str
    references: list[str]
    source: np.ndarray
    target: np.ndarray


class Batch(TypedDict):
    """A batch of B rows, with source length S and target length T.

    Keys:
        input_ids: [B, S] int64, the prompts alone, padded on the right.
        attention_mask: [B, S] int64, 0 on padding.
        labels: [B, T] int64, the response (the first reference) alone, ending in EOS, padded
            with -100.
        index: [B] int64, row number in the split; restores the order over batches and ranks.
        ids: B row ids.
        dialogues: B dialogues, without prompt and truncation.
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
        pad_token_id: Padding of ``input_ids``.
    """

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, examples: Sequence[Example]) -> Batch:
        """Collate examples into a batch, in their order."""
        sources = [example.source for example in examples]
        return Batch(
            input_ids=pad(sources, self.pad_token_id),
            attention_mask=pad([np.ones_like(source) for source in sources], 0),
            labels=pad([example.target for example in examples], IGNORED_LABEL),
            index=torch.tensor([example.index for example in examples], dtype=torch.int64),
            ids=[example.id for example in examples],
            dialogues=[example.dialogue for example in examples],
            references=[example.references for example in examples],
        )


def pad(rows: Sequence[np.ndarray], value: int) -> Tensor:
    """Stack rows of different lengths into [B, L] int64, padded on the right.

    L is a multiple of ``MULTIPLE``.
    """
    longest = max((len(row) for row in rows), default=0)
    width = -(-longest // MULTIPLE) * MULTIPLE
    padded = torch.full((len(rows), width), value, dtype=torch.int64)
    for row, target in zip(rows, padded, strict=True):
        target[: len(row)] = torch.from_numpy(row.astype(np.int64))
    return padded


def ignore_first_signal(worker: int) -> None:
    """Keep a worker alive when a signal to the process group ends the run.

    The main process finishes its step first and may need batches for it. Torch terminates hanging
    workers with SIGTERM, so only the first one is ignored.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))


class LengthBatchSampler(Sampler[list[int]]):
    """Batches of similar lengths that do not depend on ranks and accumulation.

    The n rows are split into steps of nearly equal size, at most ``batch_size * world_size *
    accumulate`` rows; each step is split into ``accumulate`` micro-batches, and each micro-batch
    is distributed over the ranks. Each row occurs once per epoch, all ranks have equally many
    batches, and a step of 8 rows has the same 8 rows, in the same order, as (batch 8, 1 rank), as
    (batch 4, 2 ranks) and as (batch 2, 1 rank, 4 micro-batches). The order is a function of the
    arguments and the epoch only.

    With ``batch_size`` 1 the rows may not divide evenly: without accumulation a rank may get two
    rows, with accumulation a batch may be empty.

    Args:
        lengths: Length of each row, in tokens.
        batch_size: Rows per batch and rank.
        shuffle: New batches each epoch; otherwise longest rows first, so that running out of memory
            shows in the first batch.
        seed: Seed of the shuffle.
        world_size: Number of ranks.
        rank: This rank.
        accumulate: Batches per optimizer step and rank. The last step of an epoch may have fewer.

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
        accumulate: int = 1,
    ) -> None:
        if len(lengths) < world_size:
            raise ValueError(
                f"{len(lengths)} row(s) are too few for {world_size} ranks, each needs one; "
                f"use fewer devices (--trainer.devices {max(1, len(lengths))}) or more rows"
            )
        self.lengths = np.asarray(lengths)
        self.shuffle = shuffle
        self.seed = seed
        self.world_size = world_size
        self.rank = rank
        self.accumulate = accumulate
        self.epoch = 0
        rows, places = len(lengths), batch_size * world_size
        steps = min(-(-rows // (places * accumulate)), rows // world_size)
        self.bounds = [step * rows // steps for step in range(steps + 1)]
        # Lightning ends an epoch with an optimizer step, so the last step may have fewer batches.
        self.last_parts = min(accumulate, -(-(rows - self.bounds[-2]) // places))

    @property
    def sampler(self) -> "LengthBatchSampler":
        """This sampler, because Lightning calls ``set_epoch`` on ``batch_sampler.sampler``."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration, which determines the order."""
        self.epoch = epoch

    def __len__(self) -> int:
        return (len(self.bounds) - 2) * self.accumulate + self.last_parts

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.global_batches():
            yield batch[self.rank :: self.world_size].tolist()

    def global_batches(self) -> list[np.ndarray]:
        """Return this epoch's micro-batches over all ranks."""
        *steps, last = self.steps()
        batches = [part for step in steps for part in cut(step, self.accumulate)]
        return batches + cut(last, self.last_parts)

    def steps(self) -> list[np.ndarray]:
        """Return the rows of this epoch's optimizer steps over all ranks."""
        bounds, steps = self.bounds, len(self.bounds) - 1
        if not self.shuffle:
            order = np.argsort(-self.lengths, kind="stable")
            return [order[a:b] for a, b in itertools.pairwise(bounds)]
        generator = np.random.default_rng((self.seed, self.epoch))
        order = generator.permutation(len(self.lengths))
        for first in range(0, steps, BUCKET_STEPS):
            bucket = slice(bounds[first], bounds[min(first + BUCKET_STEPS, steps)])
            rows = order[bucket]
            order[bucket] = rows[np.argsort(self.lengths[rows], kind="stable")]
        cuts = [order[a:b] for a, b in itertools.pairwise(bounds)]
        return [cuts[place] for place in generator.permutation(steps)]


def cut(rows: np.ndarray, parts: int) -> list[np.ndarray]:
    """Split rows into nearly equal parts; empty parts, if any, come last."""
    bounds = [-(-part * len(rows) // parts) for part in range(parts + 1)]
    return [rows[a:b] for a, b in itertools.pairwise(bounds)]


class ResumableDataModule(L.LightningDataModule):
    """Save and restore the position within a training epoch.

    The position is the state of torchdata's ``StatefulDataLoader``: how many batches it delivered,
    however many its workers have fetched ahead. Lightning can restore such a loader by itself, but
    loses its state when the learning rate schedule asks for the number of steps first (2.6.6); the
    state of a datamodule is restored earlier.
    """

    batch_size: int
    """Training rows per batch and rank."""
    eval_batch_size: int
    """Rows per batch and rank in validation and test."""
    seed: int
    """Seed of the order of the training batches."""
    num_workers: int = 0
    """Processes that collate batches; 0 uses the main process."""

    def __init__(self) -> None:
        super().__init__()
        self.descriptions: dict[str, dict[str, Any]] = {}
        self._train_loader: Any = None
        # The position in the checkpoint that was loaded, until a loader takes it over.
        self._saved: dict[str, Any] | None = None

    def loader(self, split: Split) -> DataLoader[Any]:
        """Return the batches of a split; see :meth:`length_loader`."""
        raise NotImplementedError

    def describe(self) -> dict[str, dict[str, Any]]:
        """Describe the rows of each split that was read, for the run's summary."""
        return self.descriptions

    def train_dataloader(self) -> DataLoader[Any]:
        """Return shuffled batches of similar lengths, different in each epoch."""
        return self.loader("train")

    def val_dataloader(self) -> Any:
        """Return the validation batches, longest rows first."""
        return self.loader("validation")

    def test_dataloader(self) -> Any:
        """Return the test batches, longest rows first."""
        return self.loader("test")

    def length_loader(
        self,
        split: Split,
        rows: Sequence[Any],
        length: Callable[[Any], int],
        collate: Callable[[Sequence[Any]], Any],
    ) -> DataLoader[Any]:
        """Build a loader of batches of similar lengths, sharded over the ranks.

        Args:
            split: The train split has new batches each epoch, by a loader that continues at the
                position of the loaded checkpoint. In the others the longest rows come first.
            rows: The rows.
            length: Returns the length of a row, to sort by.
            collate: Makes a batch of rows.

        Raises:
            ValueError: If the number of worker processes has changed, which the position counts.
        """
        shuffle = split == "train"
        batch_size = self.batch_size if shuffle else self.eval_batch_size
        ranks = self.trainer.world_size if self.trainer else 1
        rank = self.trainer.global_rank if self.trainer else 0
        accumulate = getattr(self.trainer, "accumulate_grad_batches", 1) if shuffle else 1
        if shuffle and batch_size * ranks * accumulate > len(rows):
            log.warning(
                "data.batch_size %d x %d rank(s) x %d accumulated batch(es) is more than the %d "
                "train rows: each epoch is a single optimizer step",
                batch_size, ranks, accumulate, len(rows),
            )  # fmt: skip
        sampler = LengthBatchSampler(
            [length(row) for row in rows], batch_size, shuffle, self.seed, ranks, rank, accumulate
        )
        settings: Any = {
            "batch_sampler": sampler,
            "collate_fn": collate,
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "worker_init_fn": ignore_first_signal,
        }
        if not shuffle:
            return DataLoader(rows, **settings)  # type: ignore[arg-type]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="'set_vital' is deprecated")  # torchdata 0.11
            self._train_loader = StatefulDataLoader(rows, **settings)
        if self._saved is not None:
            self._resume(self._train_loader, self._saved)
            self._saved = None
        return self._train_loader

    def _resume(self, loader: Any, saved: Mapping[str, Any]) -> None:
        """Move a training loader to a saved position."""
        sampler = loader.batch_sampler
        # Workers fetch before Lightning announces the epoch.
        sampler.set_epoch(saved["epoch"])
        if saved["position"] is None:
            return
        if saved["workers"] != loader.num_workers:
            raise ValueError(
                f"data.num_workers is {loader.num_workers} and was {saved['workers']} when the "
                "checkpoint was saved within an epoch; resume with the same number"
            )
        if saved["batches"] != len(sampler):
            log.warning(
                "The epoch had %d batches when the checkpoint was saved and has %d now: some rows "
                "will be seen twice and others not at all. Keep data.batch_size x ranks x "
                "trainer.accumulate_grad_batches",
                saved["batches"], len(sampler),
            )  # fmt: skip
        loader.load_state_dict(saved["position"])

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch and the position of the next batch in it."""
        loader = self._train_loader
        if loader is None or self.trainer is None:
            return {}
        epoch, batches = loader.batch_sampler.epoch, len(loader.batch_sampler)
        if self.trainer.is_last_batch:
            return {"epoch": epoch + 1, "position": None}
        return {
            "epoch": epoch,
            "position": loader.state_dict(),
            "batches": batches,
            "workers": loader.num_workers,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the position for the training loader that is built next."""
        self._saved = state_dict or None
