"""Which rows of a source are for training, validation and testing."""

import hashlib
import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import ClassVar, Generic, TypeVar

from datamodules.reading import (
    ColumnNames,
    DataError,
    OnBadRow,
    Row,
    Split,
    group,
    parse_rows,
    with_unique_ids,
)
from datamodules.sources import Kind, Source, open_source

logger = logging.getLogger(__name__)

T = TypeVar("T")


HOLDOUT = 0.1
"""Expected share of the dialogues or texts in each split that is held out."""


def split_by_hash(
    names: Iterable[str], held_out: Sequence[Split] = ("test", "validation")
) -> dict[str, Split]:
    """Assign each name to a held-out split or to the train split by its hash.

    A name keeps its split when others are added, in any order, and whatever the seed of a run: so
    runs can be compared. With enough names every split has at least one.

    Args:
        names: Dialogues or texts.
        held_out: The splits that have a share of `HOLDOUT` each.
    """
    hashes = {
        name: int(hashlib.sha256(f"0 {name}".encode()).hexdigest()[:16], 16) / 2**64
        for name in names
    }
    order = sorted(hashes, key=lambda name: hashes[name])
    chosen: dict[str, Split] = dict.fromkeys(order, "train")
    start = 0
    for number, split in enumerate(held_out, start=1):
        stop = sum(value < number * HOLDOUT for value in hashes.values())
        stop = min(max(stop, start + 1), max(0, len(order) - 1 - len(held_out) + number))
        chosen |= dict.fromkeys(order[start:stop], split)
        start = stop
    return chosen


class SplitReader(ABC, Generic[T]):
    """Reads the splits of a source, and only those that are needed.

    A missing train or validation split is held out from the other one, and a single file is
    split three ways; no dialogue or text is then in two splits.

    Args:
        name: The source; see `open_source`.
        on_bad_row: Stop at unusable rows, or skip and count them.
    """

    kind: ClassVar[Kind]

    def __init__(self, name: str, on_bad_row: OnBadRow = "stop") -> None:
        self.name = name
        self.on_bad_row = on_bad_row

    @abstractmethod
    def parse(self, source: Source, split: Split) -> list[T]:
        """Parse the rows of a split that the source has."""

    @abstractmethod
    def key(self, row: T) -> str:
        """Return the dialogue or text of a row; rows with the same one are in the same split."""

    def read(self, split: Split) -> list[T]:
        """Return the rows of a split.

        Raises:
            DataError: If the split does not exist and cannot be held out, or has bad rows.
        """
        fit_splits = {"train", "validation"}
        present = self.source.splits.keys()
        if self.source.is_single_file or (split in fit_splits and not fit_splits <= present):
            return self.by_split[split]
        if split in present:
            return self.parse(self.source, split)
        there = ", ".join(sorted(present))
        raise DataError(f"data: {self.name} has no {split} split (it has {there})")

    @cached_property
    def source(self) -> Source:
        """The opened source."""
        return open_source(self.name, self.kind)

    @cached_property
    def by_split(self) -> dict[Split, list[T]]:
        """The rows of a single file, or of the one split to fit on, split by their keys."""
        source = self.source
        held_out: tuple[Split, ...] = ("test", "validation")
        held_out = held_out if source.is_single_file else ("validation",)
        origin: Split = "train" if "train" in source.splits else "validation"
        if origin not in source.splits:
            raise DataError(
                f"data: {self.name} has no train or validation split (it has "
                f"{', '.join(sorted(source.splits))}), and this command needs one of them"
            )
        rows = self.parse(source, origin)
        chosen = split_by_hash(map(self.key, rows), held_out)
        if len(chosen) <= len(held_out):
            raise DataError(
                f"data: {self.name} has {len(chosen)} different row(s), too few to be split into "
                f"train and {' and '.join(held_out)}; put separate files into a folder, named "
                "train.jsonl, validation.jsonl and test.jsonl"
            )
        counts = Counter(chosen.values())
        logger.warning(
            "%s has no separate files for all splits: its %d %s are split into %s. To use a file "
            "as a whole, name it test.jsonl in a folder",
            self.name, len(chosen), self.kind,
            ", ".join(f"{counts[split]} for {split}" for split in ("train", *held_out)),
        )  # fmt: skip
        return {
            split: [row for row in rows if chosen[self.key(row)] == split]
            for split in ("train", *held_out)
        }


class DialogueReader(SplitReader[Row]):
    """Reads dialogues with their references, each row with a unique id.

    In the train split every line is a row; in the others the lines of one dialogue are one row
    with several references.

    Args:
        name: Hub id, folder, file, ``mini`` or ``challenge``.
        columns: Names of its columns.
        on_bad_row: Stop at unusable rows, or skip and count them.
    """

    kind = "dialogues"

    def __init__(
        self,
        name: str,
        columns: ColumnNames = ColumnNames(),  # noqa: B008 - frozen
        on_bad_row: OnBadRow = "stop",
    ) -> None:
        super().__init__(name, on_bad_row)
        self.columns = columns

    def parse(self, source: Source, split: Split) -> list[Row]:
        """Parse the lines of a split."""
        columns = ColumnNames() if source.is_built_in else self.columns
        return parse_rows(*source.read(split), columns, self.on_bad_row, prefix=f"{split}_")

    def key(self, row: Row) -> str:
        """Return the dialogue."""
        return row.dialogue

    def read(self, split: Split) -> list[Row]:
        """Return the rows of a split; see :meth:`SplitReader.read`."""
        rows = super().read(split)
        return with_unique_ids(rows if split == "train" else group(rows))
