"""How far can the faithfulness checks be trusted? Their rates on real references.

    python -m benchmarks.faithfulness

People's summaries of DialogSum (DIALOGSUM_DIR) are mostly faithful, so what the checks find in them
is mostly a false alarm. What the checks should find is made of the same texts: summaries held
against the dialogue of another row, and references with #Person1# and #Person2# exchanged.
"""

import sys
from collections.abc import Sequence
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from benchmarks.dialogsum import read_dialogsum
from datamodules.reading import Row
from metrics.faithfulness import (
    find_unknown_speakers,
    swap_speakers,
    swapped_speakers,
)
from metrics.names import find_unknown_names


class Names(NamedTuple):
    """What the checks of speakers and names find.

    Attributes:
        n: Summaries.
        speakers: Share with a speaker that their own dialogue does not have.
        own: Share with a name that their own dialogue does not have.
        with_name: Summaries with a name at all.
        other: Share of these with a name that the dialogue of another row does not have.
        found: The names found in their own dialogue's summaries.
    """

    n: int
    speakers: float
    own: float
    with_name: int
    other: float
    found: list[str]


class Swaps(NamedTuple):
    """What the check of swapped speakers finds, each reference against the others.

    Attributes:
        n: References that name a speaker.
        as_written: Share found in them.
        exchanged: Share found after their two speakers were exchanged.
    """

    n: int
    as_written: float
    exchanged: float


def measure_names(rows: Sequence[Row]) -> Names:
    """Hold each summary against its own dialogue, and against that half the rows away."""
    own, other, speakers = [], [], 0
    for place, row in enumerate(rows):
        far = rows[(place + len(rows) // 2) % len(rows)].dialogue
        for text in row.references:
            own.append(find_unknown_names(text, row.dialogue))
            speakers += bool(find_unknown_speakers(text, row.dialogue))
            if find_unknown_names(text, ""):
                other.append(bool(find_unknown_names(text, far)))
    return Names(
        n=len(own),
        speakers=speakers / len(own),
        own=sum(map(bool, own)) / len(own),
        with_name=len(other),
        other=sum(other) / len(other),
        found=[name for names in own for name in names],
    )


def measure_swaps(rows: Sequence[Row]) -> Swaps:
    """Hold each reference against the others of its dialogue, as it is and exchanged."""
    texts, others = [], []
    for row in rows:
        for place, text in enumerate(row.references):
            rest = [*row.references[:place], *row.references[place + 1 :]]
            if rest and swap_speakers(text) != text:
                texts.append(text)
                others.append(rest)
    dialogues = [""] * len(texts)
    as_written = swapped_speakers(texts, dialogues, others)
    exchanged = swapped_speakers([swap_speakers(text) for text in texts], dialogues, others)
    return Swaps(len(texts), sum(as_written) / len(texts), sum(exchanged) / len(texts))


def main() -> int:
    """Print the rates."""
    test = read_dialogsum("test")
    names = measure_names([*test, *read_dialogsum("validation")])
    swaps = measure_swaps(test)
    table = Table("check", "texts", "n", "found, %")
    for check, texts, n, share in (
        ("unknown speaker", "human summaries", names.n, names.speakers),
        ("unknown name", "human summaries", names.n, names.own),
        ("", "those with a name, against another dialogue", names.with_name, names.other),
        ("speakers swapped", "references that name a speaker", swaps.n, swaps.as_written),
        ("", "the same, with the two speakers exchanged", swaps.n, swaps.exchanged),
    ):
        table.add_row(check, texts, str(n), f"{100 * share:.1f}")
    console = Console(width=100)
    console.print(table)
    console.print(f"Names found in human summaries: {', '.join(names.found)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
