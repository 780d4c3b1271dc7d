"""What the datamodules of classifiers have in common, be they for labels or for rewards."""

from collections.abc import Sequence
from typing import Any

from torch.utils.data import DataLoader

from common.hub import load_tokenizer
from datamodules.batching import STAGES, ResumableDataModule
from datamodules.reading import Split


class ClassifierDataModule(ResumableDataModule):
    """A datamodule for a classifier, whose splits are lists in memory.

    A subclass reads them (:meth:`read_splits`), says how long a row is, and collates rows.

    Args:
        tokenizer: The classifier's: hub id, folder, or ``mini``.
        batch_size: Rows in one step, on each rank.
        max_length: Most tokens of what the classifier is shown.
        seed: Seed of the order.

    Raises:
        ValueError: If a setting is out of range.
    """

    def __init__(self, tokenizer: str, batch_size: int, max_length: int, seed: int) -> None:
        super().__init__()
        if batch_size < 1 or max_length < 3:
            raise ValueError(
                "data: batch_size must be at least 1 and max_length at least 3, "
                f"got {batch_size} and {max_length}"
            )
        self.tokenizer_name = tokenizer
        self.batch_size = batch_size
        self.max_length = max_length
        self.seed = seed
        self.tokenizer: Any = None
        self.splits: dict[Split, list[Any]] = {}

    def read_splits(self, splits: Sequence[Split]) -> None:
        """Put the rows of some splits into ``splits``."""
        raise NotImplementedError

    def length(self, row: Any) -> int:
        """Give the length of a row, in characters."""
        raise NotImplementedError

    def collate(self, rows: Sequence[Any]) -> Any:
        """Make a batch of rows."""
        raise NotImplementedError

    def setup(self, stage: str) -> None:
        """Read the rows that a stage needs.

        Raises:
            DataError: If they cannot be had, or are bad.
            ValueError: If the tokenizer takes no texts of ``max_length``.
        """
        self.tokenizer = load_tokenizer(self.tokenizer_name, "classifier")
        if self.max_length > self.tokenizer.model_max_length:
            raise ValueError(
                f"data.max_length is {self.max_length}, and {self.tokenizer_name!r} reads "
                f"{self.tokenizer.model_max_length} tokens at the most"
            )
        self.read_splits(STAGES[stage])

    def train_dataloader(self) -> DataLoader[Any]:
        """Give shuffled batches."""
        return self.resume_loader(self._loader("train", shuffle=True))

    def val_dataloader(self) -> DataLoader[Any]:
        """Give the validation rows."""
        return self._loader("validation")

    def test_dataloader(self) -> DataLoader[Any]:
        """Give the test rows."""
        return self._loader("test")

    def _loader(self, split: Split, shuffle: bool = False) -> DataLoader[Any]:
        rows = self.splits[split]
        lengths = [self.length(row) for row in rows]
        return self.length_loader(
            rows, lengths, self.batch_size, self.seed, shuffle, collate_fn=self.collate
        )
