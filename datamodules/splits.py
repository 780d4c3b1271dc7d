"""Which rows of a source are for training, validation and testing."""

import hashlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from datamodules.reading import ColumnNames, DataError, OnBadRow, Row, Split, group, with_unique_ids
from datamodules.sources import HubSource, LocalSource, open_source

logger = logging.getLogger(__name__)

HELD_OUT: tuple[Split, ...] = ("test", "validation")
"""The splits that are held out of a single file."""


def check_holdout(holdout: float) -> list[str]:
    """Return what is wrong with a share to hold out."""
    return [] if 0 < holdout < 0.5 else [f"holdout must be between 0 and 0.5, got {holdout}"]


def split_by_hash(
    names: Iterable[str], holdout: float, held_out: Sequence[Split] = HELD_OUT
) -> dict[str, Split]:
    """Assign each name to a held-out split or to the train split by its hash.

    A name keeps its split when others are added, in any order, and whatever the seed of a run: so
    runs can be compared. With enough names every split has at least one.

    Args:
        names: Dialogues or texts.
        holdout: Expected share of each held-out split.
        held_out: The held-out splits.
    """
    hashes = {
        name: int(hashlib.sha256(f"0 {name}".encode()).hexdigest()[:16], 16) / 2**64
        for name in names
    }
    order = sorted(hashes, key=lambda name: hashes[name])
    chosen: dict[str, Split] = dict.fromkeys(order, "train")
    start = 0
    for number, split in enumerate(held_out, start=1):
        stop = sum(value < number * holdout for value in hashes.values())
        stop = min(max(stop, start + 1), max(0, len(order) - 1 - len(held_out) + number))
        chosen |= dict.fromkeys(order[start:stop], split)
        start = stop
    return chosen


@dataclass
class SplitReader:
    """Reads the splits of a source of dialogues, and only those that are needed.

    In the train split every line is a row; in the others the lines of one dialogue are one row
    with several references. A missing train or validation split is held out from the other one,
    and a single file is divided into all three; no dialogue is then in two splits.

    Args:
        name: The source: hub id, folder, file, ``mini`` or ``challenge``.
        columns: Names of its columns.
        on_bad_row: Stop at unusable rows, or skip and count them.
        holdout: Share of the dialogues for each split that is held out.
    """

    name: str
    columns: ColumnNames = ColumnNames()  # noqa: RUF009 - frozen
    on_bad_row: OnBadRow = "stop"
    holdout: float = 0.1

    def read(self, split: Split) -> list[Row]:
        """Return the rows of a split, each with a unique id.

        Raises:
            DataError: If the split does not exist and cannot be held out, or has bad rows.
        """
        source, fit_splits = self.source, {"train", "validation"}
        if source.is_single_file or (split in fit_splits and not fit_splits <= source.splits):
            rows = self.divided[split]
        elif split in source.splits:
            rows = source.read(split, self.columns, self.on_bad_row)
        else:
            there = ", ".join(sorted(source.splits))
            raise DataError(f"data: {self.name} has no {split} split (it has {there})")
        return with_unique_ids(rows if split == "train" else group(rows))

    @cached_property
    def source(self) -> LocalSource | HubSource:
        """The opened source."""
        return open_source(self.name)

    @cached_property
    def divided(self) -> dict[Split, list[Row]]:
        """The rows of a single file, or of the one split to fit on, divided by dialogue."""
        source = self.source
        held_out = HELD_OUT if source.is_single_file else ("validation",)
        origin: Split = "train" if "train" in source.splits else "validation"
        if origin not in source.splits:
            raise DataError(
                f"data: {self.name} has no train or validation split (it has "
                f"{', '.join(sorted(source.splits))}), and this command needs one of them"
            )
        rows = source.read(origin, self.columns, self.on_bad_row)
        chosen = split_by_hash({row.dialogue for row in rows}, self.holdout, held_out)
        if len(chosen) <= len(held_out):
            raise DataError(
                f"data: {self.name} has {len(chosen)} dialogue(s), too few to be divided into "
                f"train and {' and '.join(held_out)}; put separate files into a folder, named "
                "train.jsonl, validation.jsonl and test.jsonl"
            )
        parts: dict[Split, list[Row]] = {split: [] for split in ("train", *held_out)}
        for row in rows:
            parts[chosen[row.dialogue]].append(row)
        logger.warning(
            "%s has no separate files for all splits: its %d dialogues are divided into %s "
            "(data.holdout %g). To use a file as a whole, name it test.jsonl in a folder",
            self.name, len(chosen), ", ".join(
                f"{len({row.dialogue for row in part})} for {split}"
                for split, part in parts.items()
            ), self.holdout,
        )  # fmt: skip
        return parts
