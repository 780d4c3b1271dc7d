"""LabelledTextDataModule: texts with a label, for a classifier."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor

from common.jsonl import Record, read_jsonl
from datamodules.classifier_data import ClassifierDataModule
from datamodules.encoding import encode_texts
from datamodules.reading import (
    DataError,
    OnBadRow,
    Split,
    read_csv,
    refuse_bad_rows,
    take_text,
)
from datamodules.shares import find_fraction_problem, find_problems, read_shares
from tools.mini.generator import generate_labelled


class LabelledText(NamedTuple):
    """A text, the number of its label among the labels, and its number in the split."""

    index: int  # type: ignore[assignment] # it hides tuple.index, which nobody calls
    text: str
    label: int


class LabelledBatch(TypedDict):
    """What a dataloader yields: B texts.

    Keys:
        inputs: What the classifier takes, [B, L] int64 each.
        labels: [B] int64.
        index: [B] int64, row number of each text in the split.
        ids: Row numbers as words.
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
            is split by text. A row has a text and a label.
        tokenizer: The classifier's: hub id, folder, or ``mini``.
        labels: The labels in the order of the classifier's outputs; the command line sets them to
            the model's.
        text_column: Name of the column with the text.
        label_column: Name of the column with the label.
        batch_size: Texts in one step, on each rank.
        max_length: Most tokens of a text; the rest is cut off.
        validation_fraction: Share of the texts of a single file that are for validation.
        test_fraction: Share of them that are for the test.
        split_seed: Which texts these are.
        on_bad_row: Stop at rows that cannot be used, or skip and count them.
        seed: Seed of the order.

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
        validation_fraction: float = 0.1,
        test_fraction: float = 0.1,
        split_seed: int = 0,
        on_bad_row: OnBadRow = "stop",
        seed: int = 42,
    ) -> None:
        super().__init__(tokenizer, batch_size, max_length, seed)
        if problem := find_fraction_problem(validation_fraction, test_fraction):
            raise ValueError(f"data: {problem}")
        self.source = source
        self.labels = list(labels)
        self.columns = text_column, label_column
        self.fractions = validation_fraction, test_fraction
        self.split_seed = split_seed
        self.on_bad_row = on_bad_row

    @classmethod
    def find_problems(cls, init_args: Any) -> list[str]:
        """List why the source cannot be used, before anything is loaded."""
        return find_problems(init_args.source, "labelled texts")

    def setup(self, stage: str) -> None:
        """Read the texts that a stage needs.

        Raises:
            DataError: If they cannot be had, or rows are bad.
            ValueError: If the module has other labels.
        """
        module = self.trainer.lightning_module if self.trainer else None
        wanted = list(getattr(module, "labels", self.labels))
        if wanted != self.labels:
            raise ValueError(
                f"data.labels is {self.labels} but model.labels is {wanted}; leave data.labels out "
                "(the command line sets it) or give both the same"
            )
        super().setup(stage)

    def read_splits(self, splits: Sequence[Split]) -> None:
        """Read the texts of some splits.

        Raises:
            DataError: If they cannot be had, or rows are bad.
        """
        for split, texts in self._read(splits).items():
            if not texts:
                raise DataError(f"data: {self.source} has no labelled text for {split}")
            self.splits[split] = [LabelledText(i, *each) for i, each in enumerate(texts)]

    def _read(self, splits: Sequence[Split]) -> dict[Split, list[tuple[str, int]]]:
        if self.source == "mini":
            rows: dict[Split, Any] = {split: generate_labelled(split) for split in splits}
            return {
                split: [(row["text"], self._number(row["label"])) for row in rows[split]]
                for split in splits
            }
        shares = read_shares(self.source, splits, self._parse, self.fractions, self.split_seed)
        return {
            split: [(text, label) for text, labels in shares[split].items() for label in labels]
            for split in splits
        }

    def _parse(self, files: Mapping[Split, Path]) -> dict[Split, dict[str, list[int]]]:
        """Read files: by text, all labels that it was given."""
        found: dict[Split, dict[str, list[int]]] = {}
        problems = []
        for split, path in files.items():
            texts: dict[str, list[int]] = found.setdefault(split, {})
            for number, record in (read_csv if path.suffix == ".csv" else read_jsonl)(path):
                try:
                    text, label = self._take(record)
                except DataError as error:
                    problems.append(f"{path}:{number}: {error}")
                else:
                    texts.setdefault(text, []).append(label)
        refuse_bad_rows(problems, self.on_bad_row)
        return found

    def _take(self, record: Record) -> tuple[str, int]:
        if isinstance(record, str):
            raise DataError(record)
        text, label = self.columns
        return take_text(record, text), self._number(take_text(record, label))

    def _number(self, label: str) -> int:
        if label not in self.labels:
            raise DataError(f"label {label!r} is not one of {', '.join(self.labels)}")
        return self.labels.index(label)

    def describe(self) -> dict[str, dict[str, Any]]:
        """Say how many texts of each split have which label, for the run's summary."""
        return {
            str(split): {
                "rows": len(texts),
                "labels": {
                    name: sum(text.label == number for text in texts)
                    for number, name in enumerate(self.labels)
                },
            }
            for split, texts in self.splits.items()
        }

    def length(self, row: LabelledText) -> int:
        """Give the characters of a text."""
        return len(row.text)

    def collate(self, rows: Sequence[LabelledText]) -> LabelledBatch:
        """Tokenise some texts."""
        texts = [row.text for row in rows]
        return LabelledBatch(
            # An empty batch is legal: see LengthBatchSampler.
            inputs=encode_texts(self.tokenizer, texts, None, self.max_length) if texts else {},
            labels=torch.tensor([row.label for row in rows], dtype=torch.int64),
            index=torch.tensor([row.index for row in rows], dtype=torch.int64),
            ids=[str(row.index) for row in rows],
            texts=texts,
        )
