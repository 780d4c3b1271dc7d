"""What the datamodules of classifiers and reward models have in common."""

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor
from torch.utils.data import DataLoader

from common.hub import load_tokenizer
from datamodules import sources
from datamodules.batching import STAGES, ResumableDataModule
from datamodules.encoding import encode_texts
from datamodules.reading import OnBadRow, Split


class ClassifierDataModule(ResumableDataModule):
    """A datamodule for a sequence classifier, with its splits as lists in memory.

    A subclass reads the rows (:meth:`read_split`), measures them (:meth:`length`) and makes batches
    (:meth:`collate`).

    Args:
        source: Where the rows come from; see the subclass.
        tokenizer: The classifier's tokenizer: hub id, folder, or ``mini``.
        batch_size: Rows per batch and rank.
        max_length: Maximum number of input tokens; longer inputs are truncated.
        on_bad_row: Stop at unusable rows, or skip and count them.
        seed: Seed of the order of the batches.

    Raises:
        ValueError: If a setting is out of range.
    """

    kind: ClassVar[sources.Kind]

    def __init__(
        self,
        source: str,
        tokenizer: str,
        batch_size: int = 16,
        max_length: int = 128,
        on_bad_row: OnBadRow = "stop",
        seed: int = 42,
    ) -> None:
        super().__init__()
        if batch_size < 1 or max_length < 3:
            raise ValueError(
                "data: batch_size must be at least 1 and max_length at least 3, "
                f"got {batch_size} and {max_length}"
            )
        self.source = source
        self.tokenizer_name = tokenizer
        self.batch_size = self.eval_batch_size = batch_size
        self.max_length = max_length
        self.on_bad_row = on_bad_row
        self.seed = seed
        self.tokenizer: Any = None
        self.splits: dict[Split, list[Any]] = {}

    @classmethod
    def find_problems(cls, init_args: Any) -> list[str]:
        """Return why the source cannot be used, before anything is loaded."""
        return sources.find_problems(init_args.source, cls.kind)

    def read_split(self, split: Split) -> list[Any]:
        """Read the rows of a split.

        Raises:
            DataError: If they are missing or unusable.
        """
        raise NotImplementedError

    def length(self, row: Any) -> int:
        """Return the length of a row in characters."""
        raise NotImplementedError

    def collate(self, rows: Sequence[Any]) -> Any:
        """Make a batch of rows; without rows (see `LengthBatchSampler`), an empty one."""
        raise NotImplementedError

    def setup(self, stage: str) -> None:
        """Read the rows that a stage needs.

        Raises:
            DataError: If they are missing or unusable.
            ValueError: If the model cannot read ``max_length`` tokens.
        """
        self.tokenizer = load_tokenizer(self.tokenizer_name, "classifier")
        if self.max_length > self.tokenizer.model_max_length:
            raise ValueError(
                f"data.max_length is {self.max_length}, but {self.tokenizer_name!r} reads at most "
                f"{self.tokenizer.model_max_length} tokens"
            )
        for split in STAGES[stage]:
            self.splits[split] = self.read_split(split)

    def tokenize(
        self, texts: Sequence[str], contexts: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """Tokenize texts, optionally each after its context; see `encode_texts`."""
        return encode_texts(self.tokenizer, texts, contexts, self.max_length) if texts else {}

    def loader(self, split: Split) -> DataLoader[Any]:
        """Return the batches of a split."""
        return self.length_loader(split, self.splits[split], self.length, self.collate)
