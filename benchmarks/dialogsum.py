"""Real DialogSum rows for benchmarks, from where the tests look for them too."""

import os
from pathlib import Path

from datamodules.reading import Row, Split
from datamodules.splits import DialogueReader

FOLDER = Path(
    os.environ.get("DIALOGSUM_DIR", Path(__file__).parents[2] / "shared" / "data" / "dialogsum")
)


def read_dialogsum(split: Split) -> list[Row]:
    """Read a split.

    Raises:
        DataError: There is no DialogSum in the folder that DIALOGSUM_DIR names.
    """
    return DialogueReader(str(FOLDER)).read(split)
