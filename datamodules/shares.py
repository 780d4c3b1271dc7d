"""A source of one's own: a folder with a file for each split, or one file that is shared out."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from common.paths import expand
from datamodules.reading import DataError, Split
from datamodules.sources import FolderSource

Rows = TypeVar("Rows")


def find_problems(name: str, what: str) -> list[str]:
    """Say why a source cannot be had, without reading a line; empty where it can.

    Args:
        name: ``mini``, a folder, or a file.
        what: What a file has lines of.
    """
    path = expand(name)
    if name == "mini" or (path.is_file() and path.suffix in (".jsonl", ".csv")):
        return []
    if path.is_dir():
        try:
            FolderSource(path)
        except DataError as error:
            return [str(error)]
        return []
    return [
        f"data.source: {name!r} is no folder with {{train,validation,test}}.{{jsonl,csv}}, no "
        f".jsonl or .csv file of {what}, and not 'mini'"
    ]


def read_shares(
    name: str,
    splits: Sequence[Split],
    read: Callable[[Mapping[Split, Path]], Mapping[Split, Mapping[str, Rows]]],
    fractions: tuple[float, float],
    seed: int,
) -> dict[Split, dict[str, Rows]]:
    """Give the rows of some splits, from a folder or from one file.

    Args:
        name: The folder or file.
        splits: Those that are wanted.
        read: Reads files, those of all splits at once; gives the rows of each under names, by which
            those of a single file are shared out.
        fractions: Shares of the names of a single file for validation and test.
        seed: Which names these are.

    Raises:
        DataError: If a folder has no file for a split.
    """
    path = expand(name)
    if path.is_dir():
        found = read(find_files(path, splits))
        return {split: dict(found[split]) for split in splits}
    whole = read({"train": path})["train"]
    chosen = share_out(whole, *fractions, seed)
    return {
        split: {key: rows for key, rows in whole.items() if chosen[key] == split}
        for split in splits
    }


def find_fraction_problem(validation: float, test: float) -> str | None:
    """Say why a file cannot be shared out so, or return None where it can."""
    if min(validation, test) > 0 and validation + test < 1:
        return None
    return (
        "validation_fraction and test_fraction must be above 0 and leave something to train on, "
        f"got {validation} and {test}"
    )


def find_files(folder: Path, splits: Sequence[Split]) -> dict[Split, Path]:
    """Find the files of some splits in a folder.

    Raises:
        DataError: If one is missing.
    """
    files = FolderSource(folder).files
    if missing := [split for split in splits if split not in files]:
        raise DataError(
            f"data: {folder} has no {' and no '.join(missing)} split (it has "
            f"{', '.join(sorted(files))}); to have one file shared out, name the file itself as "
            "data.source"
        )
    return {split: files[split] for split in splits}


def share_out(
    names: Iterable[str], validation_fraction: float, test_fraction: float, seed: int
) -> dict[str, Split]:
    """Choose the split of each name, by a hash of it and of a seed.

    So a name keeps its split when others are added, in whatever order they stand. No split stays
    empty where there are three names: it then has those whose hash is next.
    """
    hashes = {
        name: int(hashlib.sha256(f"{seed} {name}".encode()).hexdigest()[:16], 16) / 2**64
        for name in names
    }
    order = sorted(hashes, key=lambda name: hashes[name])
    within = [sum(hashes[name] < share for name in order) for share in
              (test_fraction, test_fraction + validation_fraction)]  # fmt: skip
    last = min(max(within[1], within[0] + 1, 2), max(2, len(order) - 1))
    tests = min(max(within[0], 1), last - 1)
    return {
        name: "test" if place < tests else "validation" if place < last else "train"
        for place, name in enumerate(order)
    }
