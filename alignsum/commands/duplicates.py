"""The `duplicates` command: report dialogues that two splits or two datasets share."""

import logging
from collections.abc import Sequence
from itertools import combinations_with_replacement, product
from pathlib import Path

from alignsum.commands.options import make_function_parser, split_names
from common.exits import run, start_log

log = logging.getLogger("duplicates")


def main(args: Sequence[str]) -> int:
    """Run the command; returns 2 if a dataset cannot be read, or a setting cannot be used."""
    parser = make_function_parser("duplicates", duplicates, skip=("source", "other"))
    parser.add_argument("source", help="hub id, folder, file or mini")
    parser.add_argument("other", nargs="?", type=str | None, help="another dataset")
    settings = parser.parse_args(list(args)).as_dict()
    start_log()
    return run(lambda: duplicates(**settings), log)


def duplicates(
    source: str,
    other: str | None = None,
    threshold: float = 0.7,
    dialogue_column: str = "dialogue",
    out: str | None = None,
) -> None:
    """Count dialogues of one split that another split, or another dataset, has too.

    Exact duplicates have the same letters and digits; case, spaces and punctuation do not count.
    The word shingles of near-duplicates have a Jaccard similarity of at least the threshold.

      python -m alignsum duplicates data/samsum data/dialogsum --threshold 0.5 --out pairs.jsonl

    Args:
        source: Hub id, folder, file or "mini".
        other: Another dataset, in which the dialogues of the source are looked for.
        threshold: Least similarity of near-duplicates.
        dialogue_column: Column of the dialogues; A,B if it differs between the datasets.
        out: JSON lines to write: splits, ids and similarity of each pair.
    """
    from rich.console import Console

    from common.jsonl import to_lines
    from common.run_folder import write_text
    from datamodules.duplicates import find_duplicates, read_dialogues
    from reporting.markdown import terminal_table

    if not 0 < threshold <= 1:
        raise ValueError(f"--threshold must be above 0 and at most 1, got {threshold}")
    if out is not None and Path(out).exists():
        raise ValueError(f"--out {out} exists; name another file")
    columns = split_names(dialogue_column)
    found = read_dialogues(source, columns[0], "" if other is None else "source ")
    splits = list(dict.fromkeys(each.split for each in found))
    if other is None:
        compared = [(later, split) for split, later in combinations_with_replacement(splits, 2)]
    else:
        second = read_dialogues(other, columns[-1], "other ")
        compared = list(product(splits, dict.fromkeys(each.split for each in second)))
        found += second
    pairs = find_duplicates(found, compared, threshold)
    rows = [["split", "also in", "exact", "near", "of"]]
    for split, where in sorted(compared):
        own = [pair for pair in pairs if (pair.split, pair.other_split) == (split, where)]
        exact = {pair.id for pair in own if pair.exact}
        near = {pair.id for pair in own} - exact
        total = sum(each.split == split for each in found)
        rows.append([split, where, f"{len(exact):,}", f"{len(near):,}", f"{total:,}"])
    Console().print(terminal_table(rows, ("split", "also in"), "near: without an exact duplicate"))
    if out is not None:
        write_text(Path(out), to_lines(pair._asdict() for pair in pairs))
        log.info("Wrote %d pairs to %s", len(pairs), out)
