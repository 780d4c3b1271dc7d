"""Which rows of a source are for training, validation and testing."""

import hashlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from datamodules.reading import ColumnNames, DataError, OnBadRow, Row, Split, group, with_unique_ids
from datamodules.sources import HubSource, LocalSource, open_source

logger = logging.getLogger(__name__)


def check_fractions(validation: float, test: float) -> list[str]:
    """Return what is wrong with the shares of a single file for validation and test."""
    if min(validation, test) > 0 and validation + test < 1:
        return []
    return [
        "validation_fraction and test_fraction must be positive and leave something to train on, "
        f"got {validation} and {test}"
    ]


def split_by_hash(
    names: Iterable[str], validation_fraction: float, test_fraction: float, seed: int
) -> dict[str, Split]:
    """Assign each name to a split by a hash of the name and a seed.

    A name keeps its split when other names are added, and in any order. With at least three names
    no split is empty: a split that would be takes the names with the next hashes.

    Args:
        names: The dialogues or texts to assign.
        validation_fraction: Expected share for validation.
        test_fraction: Expected share for testing.
        seed: Another seed is another assignment.
    """
    hashes = {
        name: int(hashlib.sha256(f"{seed} {name}".encode()).hexdigest()[:16], 16) / 2**64
        for name in names
    }
    order = sorted(hashes, key=lambda name: hashes[name])
    tests, last = (
        sum(value < share for value in hashes.values())
        for share in (test_fraction, test_fraction + validation_fraction)
    )
    last = min(max(last, tests + 1, 2), max(2, len(order) - 1))
    tests = min(max(tests, 1), last - 1)
    return {
        name: "test" if place < tests else "validation" if place < last else "train"
        for place, name in enumerate(order)
    }


@dataclass
class SplitReader:
    """Reads the splits of a source of dialogues, and only those that are needed.

    In the train split every line is a row; in the others the lines of one dialogue are one row
    with several references. A missing train or validation split is held out from the other one. A
    single file is split by dialogue.

    Args:
        name: The source: hub id, folder, file, ``mini`` or ``challenge``.
        columns: Names of its columns.
        on_bad_row: Stop at unusable rows, or skip and count them.
        holdout: Share of the dialogues held out for a missing split; of a single file, the share
            for validation and the share for testing.
        seed: Seed of the hold-out.
    """

    name: str
    columns: ColumnNames
    on_bad_row: OnBadRow
    holdout: float
    seed: int
    _opened: LocalSource | HubSource | None = None
    _held_out: dict[Split, list[Row]] = field(default_factory=dict)

    def read(self, split: Split) -> list[Row]:
        """Return the rows of a split, each with a unique id.

        Raises:
            DataError: If the split does not exist and cannot be held out, or has bad rows.
        """
        source = self.open()
        if source.is_single_file:
            self._held_out = self._held_out or self._split_file()
            return with_unique_ids(self._held_out[split])
        if split != "test" and not {"train", "validation"} <= source.splits:
            self._held_out = self._held_out or self._hold_out()
            return with_unique_ids(self._held_out[split])
        rows = self._read(split)
        return with_unique_ids(rows if split == "train" else group(rows))

    def open(self) -> LocalSource | HubSource:
        """Open the source once."""
        if self._opened is None:
            self._opened = open_source(self.name)
        return self._opened

    def _read(self, split: Split) -> list[Row]:
        source = self.open()
        if split not in source.splits:
            there = ", ".join(sorted(source.splits))
            raise DataError(f"data: {self.name} has no {split} split (it has {there})")
        return source.read(split, self.columns, self.on_bad_row)

    def _split_file(self) -> dict[Split, list[Row]]:
        """Split a single file; all rows of a dialogue are in the same split."""
        rows = self._read("train")
        chosen = split_by_hash(
            {row.dialogue for row in rows}, self.holdout, self.holdout, self.seed
        )
        if len(chosen) < 3:
            raise DataError(
                f"data: {self.name} has {len(chosen)} dialogue(s), too few to train, validate and "
                "test on; to use the file as one split, put it into a folder as train.jsonl, "
                "validation.jsonl or test.jsonl"
            )
        parts: dict[Split, list[Row]] = {"train": [], "validation": [], "test": []}
        for row in rows:
            parts[chosen[row.dialogue]].append(row)
        counts = {split: sum(each == split for each in chosen.values()) for split in parts}
        logger.warning(
            "%s is a single file: of its %d dialogues %d are for training, %d for validation and "
            "%d for testing (data.holdout %g). To use a file as one split, put it into a folder "
            "as train.jsonl, validation.jsonl or test.jsonl",
            self.name, len(chosen), *counts.values(), self.holdout,
        )  # fmt: skip
        return {split: part if split == "train" else group(part) for split, part in parts.items()}

    def _hold_out(self) -> dict[Split, list[Row]]:
        """Divide the existing split; no dialogue is in both parts."""
        there = self.open().splits
        if not {"train", "validation"} & there:
            raise DataError(
                f"data: {self.name} has no train or validation split (it has "
                f"{', '.join(sorted(there))}), and this command needs one of them"
            )
        origin: Split = "train" if "train" in there else "validation"
        rows = self._read(origin)
        dialogues = sorted({row.dialogue for row in rows})
        if len(dialogues) < 2:
            raise DataError(
                f"data: {self.name} has one dialogue, which cannot be both trained on and held out"
            )
        count = min(max(1, round(self.holdout * len(dialogues))), len(dialogues) - 1)
        chosen = np.random.default_rng(self.seed).choice(len(dialogues), count, replace=False)
        held = {dialogues[i] for i in chosen}
        logger.warning(
            "%s has no %s split: of the %d dialogues in its %s split, %d are for training and %d, "
            "drawn with seed %d, are held out for validation",
            self.name, "validation" if origin == "train" else "train", len(dialogues), origin,
            len(dialogues) - count, count, self.seed,
        )  # fmt: skip
        return {
            "train": [row for row in rows if row.dialogue not in held],
            "validation": group([row for row in rows if row.dialogue in held]),
        }
