"""How far can the faithfulness checks be trusted? Their rates on real references.

    python -m benchmarks.faithfulness

People's summaries of DialogSum (DIALOGSUM_DIR) are mostly faithful, so what the checks find in them
is mostly a false alarm. What the checks should find is made from the same texts: summaries compared
with the dialogue of another row, and references with #Person1# and #Person2# exchanged.
"""

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from benchmarks.dialogsum import read_dialogsum
from datamodules.reading import Row
from metrics.faithfulness import find_unknown_speakers, swap_speakers, swapped_speakers
from metrics.names import find_unknown_names

Rate = tuple[int, float]
"""Number of texts, and the share of them in which a check finds something."""


def measure_names(rows: Sequence[Row]) -> dict[str, Rate]:
    """Check human summaries against their own dialogue, and against that of a distant row."""
    speakers, own, other = [], [], []
    for place, row in enumerate(rows):
        distant = rows[(place + len(rows) // 2) % len(rows)].dialogue
        for text in row.references:
            speakers.append(bool(find_unknown_speakers(text, row.dialogue)))
            own.append(bool(find_unknown_names(text, row.dialogue)))
            if find_unknown_names(text, ""):
                other.append(bool(find_unknown_names(text, distant)))
    return {
        "unknown speaker: human summaries": rate(speakers),
        "unknown name: human summaries": rate(own),
        "unknown name: those with a name, against another dialogue": rate(other),
    }


def measure_swaps(rows: Sequence[Row]) -> dict[str, Rate]:
    """Check each reference that names a speaker against the others, as written and exchanged."""
    texts, others = [], []
    for row in rows:
        for place, text in enumerate(row.references):
            rest = [*row.references[:place], *row.references[place + 1 :]]
            if rest and swap_speakers(text) != text:
                texts.append(text)
                others.append(rest)
    dialogues = [""] * len(texts)
    exchanged = [swap_speakers(text) for text in texts]
    return {
        "swapped speakers: references": rate(swapped_speakers(texts, dialogues, others)),
        "swapped speakers: exchanged": rate(swapped_speakers(exchanged, dialogues, others)),
    }


def rate(found: Sequence[float]) -> Rate:
    """Return the number of texts and the share in which something was found."""
    return len(found), sum(found) / len(found)


def main() -> int:
    """Print the rates."""
    test = read_dialogsum("test")
    table = Table("check and texts", "n", "found, %")
    rates = measure_names([*test, *read_dialogsum("validation")]) | measure_swaps(test)
    for what, (n, share) in rates.items():
        table.add_row(what, str(n), f"{100 * share:.1f}")
    Console(width=100).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
