"""LabelledTextDataModule: texts with labels, for a classifier."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor

from datamodules.base import ClassifierDataModule
from datamodules.reading import (
    DataError,
    Split,
    parse_records,
    require_columns,
    take_text,
)
from datamodules.sources import Source
from datamodules.splits import SplitReader


class LabelledText(NamedTuple):
    """A text, the number of its label, and its row number in the split."""

    index: int  # type: ignore[assignment] # hides tuple.index, which is not used
    text: str
    label: int


class LabelledBatch(TypedDict):
    """A batch of B texts.

    Keys:
        inputs: The classifier's inputs, [B, L] int64 each.
        labels: [B] int64.
        index: [B] int64, row number of each text in the split.
        ids: The row numbers as strings.
        texts: The texts.
    """

    inputs: dict[str, Tensor]
    labels: Tensor
    index: Tensor
    ids: list[str]
    texts: list[str]


class _Reader(SplitReader[tuple[str, int]]):
    """Reads texts with the numbers of their labels."""

    kind = "labelled"
    labels: Sequence[str]
    columns: tuple[str, str]
    """Names of the columns with the text and with the label."""

    def parse(self, source: Source, split: Split) -> list[tuple[str, int]]:
        options = dict(
            zip(self.columns, ("--data.text_column", "--data.label_column"), strict=True)
        )
        return parse_records(*source.read(split), self.parse_record, self.on_bad_row, options)

    def parse_record(self, record: Mapping[str, Any]) -> tuple[str, int]:
        require_columns(record, *self.columns)
        text, label = take_text(record, self.columns[0]), str(record[self.columns[1]])
        numbers = {name: number for number, name in enumerate(self.labels)}
        numbers |= {
            str(number): number for number in numbers.values() if str(number) not in numbers
        }
        if label not in numbers:
            raise DataError(f"label {label!r} is not one of {', '.join(numbers)}")
        return text, numbers[label]

    def key(self, row: tuple[str, int]) -> str:
        return row[0]


class LabelledTextDataModule(ClassifierDataModule):
    """Texts labeled by people, or the miniature's.

    Args:
        source: ``mini``; a folder with ``{train,validation,test}.{jsonl,csv}``; or one file, which
            is split by text. Rows have a text and a label, by name or by number from 0.
        tokenizer: The classifier's tokenizer: hub id, folder, or ``mini``.
        labels: The labels in the order of the classifier's outputs; the command line sets them to
            the model's.
        text_column: Name of the column with the text.
        label_column: Name of the column with the label.
        **settings: See :class:`ClassifierDataModule`.

    Raises:
        ValueError: If a setting is out of range.
    """

    kind = "labelled"

    def __init__(
        self,
        source: str,
        tokenizer: str,
        labels: Sequence[str] = ("nothate", "hate"),
        text_column: str = "text",
        label_column: str = "label",
        **settings: Any,
    ) -> None:
        super().__init__(source, tokenizer, **settings)
        self.labels = list(labels)
        self.reader = _Reader(source, self.on_bad_row)
        self.reader.labels = self.labels
        self.reader.columns = text_column, label_column

    def setup(self, stage: str) -> None:
        """Read the texts that a stage needs.

        Raises:
            DataError: If they are missing or unusable.
            ValueError: If the module has other labels.
        """
        module = self.trainer.lightning_module if self.trainer else None
        wanted = list(getattr(module, "labels", self.labels))
        if wanted != self.labels:
            raise ValueError(
                f"data.labels is {self.labels} but model.labels is {wanted}; leave data.labels out "
                "(the command line sets it) or make them equal"
            )
        super().setup(stage)

    def read_split(self, split: Split) -> list[LabelledText]:
        """Read the texts of a split, and count their labels for the run's summary."""
        rows = self.reader.read(split)
        if not rows:
            raise DataError(f"data: {self.source} has no labeled text for {split}")
        counts = Counter(self.labels[label] for _, label in rows)
        labels = {label: counts[label] for label in self.labels}
        self.descriptions[split] = {"rows": len(rows), "labels": labels}
        return [LabelledText(i, *row) for i, row in enumerate(rows)]

    def length(self, row: LabelledText) -> int:
        """Return the number of characters of a text."""
        return len(row.text)

    def collate(self, rows: Sequence[LabelledText]) -> LabelledBatch:
        """Tokenize texts."""
        texts = [row.text for row in rows]
        return LabelledBatch(
            inputs=self.tokenize(texts),
            labels=torch.tensor([row.label for row in rows], dtype=torch.int64),
            index=torch.tensor([row.index for row in rows], dtype=torch.int64),
            ids=[str(row.index) for row in rows],
            texts=texts,
        )
