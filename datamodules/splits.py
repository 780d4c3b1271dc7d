"""The splits of a source as they are used: references grouped, a missing split held out."""

import logging
from dataclasses import dataclass, field

import numpy as np

from datamodules.reading import ColumnNames, DataError, OnBadRow, Row, Split, group, with_unique_ids
from datamodules.sources import Source, open_source

logger = logging.getLogger(__name__)


@dataclass
class SplitReader:
    """Reads the splits of a source, and only those that are asked for.

    In the train split every line is a row of its own; elsewhere the lines of one dialogue are one
    row with several references.

    Args:
        name: The source: hub id, folder or ``mini``.
        columns: Names of its columns.
        on_bad_row: Stop at rows that cannot be used, or skip and count them.
        holdout: Share of the dialogues held out where the train or validation split is missing.
        seed: Seed of the hold-out.
    """

    name: str
    columns: ColumnNames
    on_bad_row: OnBadRow
    holdout: float
    seed: int
    _opened: Source | None = None
    _shares: dict[Split, list[Row]] = field(default_factory=dict)

    def read(self, split: Split) -> list[Row]:
        """Give the rows of a split, each with an id of its own.

        Raises:
            DataError: If there is no such split, none that it can be held out from, or a bad row.
        """
        source = self.open()
        if split != "test" and not {"train", "validation"} <= source.splits:
            self._shares = self._shares or self._hold_out()
            return with_unique_ids(self._shares[split])
        rows = self._read(split)
        return with_unique_ids(rows if split == "train" else group(rows))

    def open(self) -> Source:
        """Open the source, once."""
        if self._opened is None:
            self._opened = open_source(self.name)
        return self._opened

    def _read(self, split: Split) -> list[Row]:
        source = self.open()
        if split not in source.splits:
            there = ", ".join(sorted(source.splits))
            raise DataError(f"data: {self.name} has no {split} split (it has {there})")
        return source.read(split, self.columns, self.on_bad_row)

    def _hold_out(self) -> dict[Split, list[Row]]:
        """Share out the one split that is there; no dialogue is in both parts."""
        there = self.open().splits
        if not {"train", "validation"} & set(there):
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
            "%s has no %s split: of the %d dialogues of its %s split, %d are for training and %d, "
            "drawn with seed %d, are held out for validation",
            self.name, "validation" if origin == "train" else "train", len(dialogues), origin,
            len(dialogues) - count, count, self.seed,
        )  # fmt: skip
        return {
            "train": [row for row in rows if row.dialogue not in held],
            "validation": group([row for row in rows if row.dialogue in held]),
        }
