"""Combine the rankings of several annotators into preference pairs."""

import logging
from collections.abc import Iterable, Sequence
from itertools import combinations
from statistics import mean
from typing import Any, NamedTuple

from datamodules.rankings import Answer, find_id, group_by_dialogue, keep_latest, parse_answer
from datamodules.reading import DataError, Split, normalize_whitespace, parse_records
from datamodules.sources import Source
from datamodules.splits import SplitReader

logger = logging.getLogger(__name__)

_REMEDY = (
    "Correct them, or skip them with --data.on_bad_row skip. "
    'An answer is {"id": "1", "dialogue": "...", "completions": ["...", "..."], "ranks": [1, 2]} '
    'or {"prompt": "...", "chosen": "...", "rejected": "..."}'
)


class Pair(NamedTuple):
    """Two completions of a ranking by position: the preferred one and the other.

    The distance is in ranks: 1 for neighbors in the ranking of a single annotator.
    """

    preferred: int
    other: int
    distance: float


class Ranking(NamedTuple):
    """The combined judgment of all annotators on one dialogue.

    Attributes:
        index: Row number in the split.
        id: Id of the dialogue.
        dialogue: Its text.
        completions: Sorted alphabetically, so that their order in the file has no influence.
        ranks: Mean rank of each completion over the annotators who ranked it.
        pairs: All pairs with a preference; ties are not pairs.
    """

    index: int  # type: ignore[assignment] # hides tuple.index, which is not used
    id: str
    dialogue: str
    completions: list[str]
    ranks: list[float]
    pairs: list[Pair]


# One dialogue -------------------------------------------------------------------------------------


def mid_ranks(answer: Answer) -> dict[str, float]:
    """Rank the usable completions from 1; ties share the mean of their positions.

    Only the order of the given ranks counts: 1, 5, 5 becomes 1, 2.5, 2.5.
    """
    usable = {
        text: rank
        for text, rank in zip(answer.completions, answer.ranks or (), strict=True)
        if rank is not None
    }
    given = list(usable.values())
    return {
        text: sum(other < rank for other in given) + (given.count(rank) + 1) / 2
        for text, rank in usable.items()
    }


def find_consensus(index: int, answers: Sequence[Answer]) -> Ranking:
    """Combine the answers on one dialogue into one ranking.

    Two completions are compared by the annotators who ranked both, so annotators may have seen
    different completions. With r the ranks of :func:`mid_ranks`, an annotator's gap is r(b) - r(a);
    a is preferred if the mean gap is positive, and the mean gap is the distance. If all annotators
    ranked the same completions, these are differences of mean ranks.

    Completions that more annotators call unusable than rank are left out.

    Args:
        index: Row number of the ranking in its split.
        answers: At least one answer with ranks, in any order.
    """
    ranked = [mid_ranks(answer) for answer in answers]
    shown = [text for answer in answers for text in dict.fromkeys(answer.completions)]
    given = {text: [ranks[text] for ranks in ranked if text in ranks] for text in shown}
    texts = sorted(
        text for text in given if given[text] and 2 * len(given[text]) >= shown.count(text)
    )
    pairs = []
    for a, b in combinations(range(len(texts)), 2):
        one, two = texts[a], texts[b]
        gaps = [ranks[two] - ranks[one] for ranks in ranked if one in ranks and two in ranks]
        gap = mean(gaps) if gaps else 0
        if gap:
            pairs.append(Pair(a, b, gap) if gap > 0 else Pair(b, a, -gap))
    dialogue = min((answer.id, answer.dialogue) for answer in answers)[1]
    ranks = [mean(given[text]) for text in texts]
    return Ranking(index, find_id(answers), dialogue, texts, ranks, pairs)


def share_same_order(rankings: Iterable[Sequence[Answer]]) -> float | None:
    """Compute how often two annotators put the same two completions in the same order.

    Comparisons in which one annotator ties the two are ignored.

    Args:
        rankings: For each dialogue the answers of its annotators.

    Returns:
        A fraction of 1; None if nothing was compared twice.
    """
    same = [
        (one[a] < one[b]) == (two[a] < two[b])
        for answers in rankings
        for one, two in combinations(map(mid_ranks, answers), 2)
        for a, b in combinations(sorted(one.keys() & two.keys()), 2)
        if one[a] != one[b] and two[a] != two[b]
    ]
    return sum(same) / len(same) if same else None


# One source ---------------------------------------------------------------------------------------


class RankingReader(SplitReader[Answer]):
    """Reads rankings: ``mini``, a folder with one file of answers per split, or a single file."""

    kind = "rankings"

    def parse(self, source: Source, split: Split) -> list[Answer]:
        """Parse the answers of a split."""
        records, where = source.read(split)
        return parse_records(records, where, parse_answer, self.on_bad_row, remedy=_REMEDY)

    def key(self, row: Answer) -> str:
        """Return the dialogue, whose white space does not count."""
        return normalize_whitespace(row.dialogue)

    def read_rankings(self, split: Split) -> tuple[list[Ranking], dict[str, Any]]:
        """Combine the answers on each dialogue of a split.

        Returns:
            The rankings, and counts of what they were made from (JSON types).

        Raises:
            DataError: If the split is missing, has bad lines, or no preference at all.
        """
        latest = [keep_latest(group) for group in group_by_dialogue(self.read(split))]
        ranked = [[answer for answer in group if any(answer.ranks or ())] for group in latest]
        ranked = [group for group in ranked if group]
        rankings: list[Ranking] = []
        for group in ranked:
            ranking = find_consensus(len(rankings), group)
            if ranking.pairs:
                rankings.append(ranking)
        answers = [answer for group in ranked for answer in group]
        description = {
            "rankings": len(rankings),
            "pairs": sum(len(ranking.pairs) for ranking in rankings),
            "answers": len(answers),
            "annotators": len({answer.annotator for answer in answers} - {None}),
            "skipped": sum(map(len, latest)) - len(answers),
            "same_order": share_same_order(ranked),
        }
        if not rankings:
            raise DataError(
                f"data: {self.name} has no {split} dialogue with two completions of which one is "
                f"preferred ({description})"
            )
        logger.info("%s: %s", split, description)
        return rankings, description
