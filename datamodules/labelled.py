"""LabelledTextDataModule: texts with labels, for a classifier."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor

from datamodules import sources
from datamodules.base import ClassifierDataModule
from datamodules.reading import (
    DataError,
    OnBadRow,
    Split,
    parse_records,
    read_records,
    refuse_bad_rows,
    take_text,
)
from datamodules.splits import check_holdout, split_by_hash


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


class LabelledTextDataModule(ClassifierDataModule):
    """Texts labelled by people, or the miniature's.

    Args:
        source: ``mini``; a folder with ``{train,validation,test}.{jsonl,csv}``; or one file, which
            is split by text. Rows have a text and a label.
        tokenizer: The classifier's tokenizer: hub id, folder, or ``mini``.
        labels: The labels in the order of the classifier's outputs; the command line sets them to
            the model's.
        text_column: Name of the column with the text.
        label_column: Name of the column with the label.
        batch_size: Texts per batch and rank.
        max_length: Maximum number of tokens; longer texts are truncated.
        holdout: Share of the texts of a single file for validation, and for testing.
        on_bad_row: Stop at unusable rows, or skip and count them.
        seed: Seed of the order of the batches.

    Raises:
        ValueError: If a setting is out of range.
    """

    def __init__(
        self,
        source: str,
        tokenizer: str,
        labels: Sequence[str] = ("nothate", "hate"),
        text_column: str = "text",
        label_column: str = "label",
        batch_size: int = 32,
        max_length: int = 128,
        holdout: float = 0.1,
        on_bad_row: OnBadRow = "stop",
        seed: int = 42,
    ) -> None:
        super().__init__(tokenizer, batch_size, max_length, seed)
        if problems := check_holdout(holdout):
            raise ValueError("data: " + "; ".join(problems))
        self.source = source
        self.labels = list(labels)
        self.text_column = text_column
        self.label_column = label_column
        self.holdout = holdout
        self.on_bad_row = on_bad_row

    @classmethod
    def find_problems(cls, init_args: Any) -> list[str]:
        """Return why the source cannot be used, before anything is loaded."""
        return sources.find_problems(init_args.source, "labelled")

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

    def read_splits(self, splits: Sequence[Split]) -> None:
        """Read the texts of some splits.

        Raises:
            DataError: If they are missing or unusable.
        """
        source = sources.open_local(self.source, "labelled")
        files = source.find(splits)
        rows: dict[Path, list[tuple[str, int]]] = {}
        problems: list[str] = []
        options = {self.text_column: "--data.text_column", self.label_column: "--data.label_column"}
        for path in dict.fromkeys(files.values()):
            rows[path], bad = parse_records(read_records(path), str(path), self._parse, options)
            problems += bad
        refuse_bad_rows(problems, self.on_bad_row)
        for split, path in files.items():
            texts = rows[path]
            if source.is_single_file:
                chosen = split_by_hash((text for text, _ in texts), self.holdout)
                texts = [row for row in texts if chosen[row[0]] == split]
            if not texts:
                raise DataError(f"data: {self.source} has no labelled text for {split}")
            self.splits[split] = [LabelledText(i, *row) for i, row in enumerate(texts)]

    def _parse(self, record: Mapping[str, Any], number: int) -> tuple[str, int]:
        text, label = take_text(record, self.text_column), take_text(record, self.label_column)
        if label not in self.labels:
            raise DataError(f"label {label!r} is not one of {', '.join(self.labels)}")
        return text, self.labels.index(label)

    def describe(self) -> dict[str, dict[str, Any]]:
        """Count the labels of each split that was read, for the run's summary."""
        counts = {
            str(split): Counter(text.label for text in texts)
            for split, texts in self.splits.items()
        }
        return {
            split: {
                "rows": count.total(),
                "labels": {name: count[number] for number, name in enumerate(self.labels)},
            }
            for split, count in counts.items()
        }

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
