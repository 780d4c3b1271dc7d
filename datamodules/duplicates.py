"""Find dialogues that occur twice: in two splits of a dataset, or in two datasets.

Exact duplicates have the same letters and digits, whatever their case, spaces and punctuation.
Near-duplicates have sets of word shingles whose Jaccard similarity is at least a threshold t.

All such pairs are found without comparing every dialogue with every other. Two similar sets share
at least t n of the n elements of each, so they share one of the first n - ceil(t n) + 1 in any
order that is the same for all sets (Chaudhuri et al. 2006, "A Primitive Operator for Similarity
Joins in Data Cleaning"). With rare shingles first, an index of these elements has few candidates.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple

from datamodules.reading import ColumnNames, Split, group, parse_rows, with_unique_ids
from datamodules.sources import open_source

SHINGLE = 3  # words; a changed word changes three shingles


class Dialogue(NamedTuple):
    """A dialogue and where it comes from."""

    split: str
    id: str
    text: str


class Pair(NamedTuple):
    """A dialogue, and the first one of another split, or before it in its own, that equals it."""

    split: str
    id: str
    other_split: str
    other_id: str
    similarity: float
    exact: bool


def read_dialogues(name: str, column: str, prefix: str = "") -> list[Dialogue]:
    """Read the dialogues of all splits of a source: train, test, validation.

    Unusable rows are skipped with a warning. Outside train, rows with the same text are one.

    Args:
        name: Hub id, folder, file, ``mini`` or ``challenge``; a file is one split, ``all``.
        column: Name of the column of dialogues.
        prefix: What comes before the names of the splits.

    Raises:
        DataError: If the source does not exist or has no such column.
    """
    source = open_source(name)
    columns = ColumnNames() if source.is_built_in else ColumnNames(dialogue=column)
    splits: tuple[Split, ...] = ("train", "test", "validation")
    dialogues = []
    for split in splits[:1] if source.is_single_file else filter(source.splits.get, splits):
        label = prefix + ("all" if source.is_single_file else split)
        records, where = source.read(split)
        rows = parse_rows(records, where, columns, "skip", False, f"{split}_", "--{}_column")
        rows = with_unique_ids(rows if split == "train" else group(rows))
        dialogues += [Dialogue(label, row.id, row.dialogue) for row in rows]
    return dialogues


def find_duplicates(
    dialogues: Sequence[Dialogue], compared: Sequence[tuple[str, str]], threshold: float
) -> list[Pair]:
    """Find the duplicates of each dialogue; of equal texts in a split only the first is named.

    Args:
        dialogues: Dialogues of all splits.
        compared: Pairs of splits (a, b): look for the dialogues of a in b. Within a split, (a, a),
            a dialogue is compared with those before it.
        threshold: Least similarity of near-duplicates, above 0 and at most 1.
    """
    texts: dict[str, list[int]] = defaultdict(list)
    words = [re.findall(r"[^\W_]+", each.text.lower()) for each in dialogues]
    for position, each in enumerate(words):
        texts["".join(each)].append(position)
    members = list(texts.values())
    firsts = [{dialogues[i].split: i for i in reversed(positions)} for positions in members]
    matches = [(i, i, 1.0) for i, positions in enumerate(members) if len(positions) > 1]
    sets = [make_shingles(words[positions[0]]) for positions in members]
    for i, j, similarity in find_similar_sets(sets, threshold):
        matches += [(i, j, similarity), (j, i, similarity)]
    pairs = []
    for i, j, similarity in matches:
        for position in members[i]:
            split, name, _ = dialogues[position]
            for where, first in firsts[j].items():
                if (split, where) in compared and (split != where or first < position):
                    other = dialogues[first].id
                    pairs.append(Pair(split, name, where, other, round(similarity, 4), i == j))
    return pairs


def make_shingles(words: Sequence[str]) -> set[int]:
    """Return the hashes of all runs of `SHINGLE` words; of the whole text if it has fewer."""
    starts = range(max(1, len(words) - SHINGLE + 1))
    return {hash(tuple(words[start : start + SHINGLE])) for start in starts}


def find_similar_sets(
    sets: Sequence[set[int]], threshold: float
) -> Iterator[tuple[int, int, float]]:
    """Yield (i, j, Jaccard similarity) for all pairs of sets with at least a similarity."""
    counts = Counter(chain.from_iterable(sets))
    index: dict[int, list[int]] = defaultdict(list)
    for j in sorted(range(len(sets)), key=lambda i: len(sets[i])):
        size = len(sets[j])
        leading = size - math.floor(threshold * size) + 1
        candidates: set[int] = set()
        for element in sorted(sets[j], key=lambda each: (counts[each], each))[:leading]:
            candidates.update(index[element])
            index[element].append(j)
        for i in candidates:
            shared = len(sets[i] & sets[j])
            similarity = shared / (len(sets[i]) + size - shared)
            if similarity >= threshold:
                yield i, j, similarity
