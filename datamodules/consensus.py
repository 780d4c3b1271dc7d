"""From the answers of several annotators to one set of pairs, the preferred one first."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import mean, median
from typing import Literal, NamedTuple

from datamodules.answers import Answer

Consensus = Literal["mean_rank", "majority"]


class Pair(NamedTuple):
    """Two completions by their places: the preferred one, the other, and how far apart they are.

    The distance is in ranks: 1 for neighbours in the ranking of a single annotator.
    """

    preferred: int
    other: int
    distance: float


class Ranking(NamedTuple):
    """What all annotators together say of the completions of one dialogue.

    Attributes:
        index: Its number in the split.
        id: Of the dialogue.
        dialogue: Its text.
        completions: In the order of the alphabet, so that their order in a file plays no part.
        ranks: Mean rank of each over those who ranked it.
        pairs: Every two of which one is preferred; ties are no pair.
    """

    index: int  # type: ignore[assignment] # it hides tuple.index, which nobody calls
    id: str
    dialogue: str
    completions: list[str]
    ranks: list[float]
    pairs: list[Pair]


def mid_ranks(answer: Answer) -> dict[str, float]:
    """Rank the usable completions of an answer from 1 on; ties share the mean of their places.

    Only the order of the ranks given counts: 1, 5, 5 is 1, 2.5, 2.5.
    """
    usable = {
        text: rank
        for text, rank in zip(answer.completions, answer.ranks, strict=True)
        if rank is not None
    }
    given = list(usable.values())
    return {
        text: sum(other < rank for other in given) + (given.count(rank) + 1) / 2
        for text, rank in usable.items()
    }


def find_consensus(index: int, name: str, answers: Sequence[Answer], how: Consensus) -> Ranking:
    """Make one ranking of the answers on a dialogue.

    Two completions are compared by the annotators who ranked both, so annotators may have seen
    different completions. With r the ranks of :func:`mid_ranks`, the gap of an annotator is
    r(b) - r(a).

    - ``mean_rank``: a is preferred where the mean gap is above 0; it is the distance. Where all
      have ranked the same completions, these are the differences of the mean ranks.
    - ``majority``: a is preferred where the gap of more than half is above 0. The distance is the
      median gap.

    A completion that more annotators call unusable than rank is left out.

    Args:
        index: Number of the ranking in its split.
        name: Id of the dialogue.
        answers: At least one, in any order.
        how: The kind of consensus.
    """
    ranked = [mid_ranks(answer) for answer in answers]
    seen = [text for answer in answers for text in answer.completions]
    given = {text: [ranks[text] for ranks in ranked if text in ranks] for text in seen}
    texts = sorted(
        text for text in given if given[text] and 2 * len(given[text]) >= seen.count(text)
    )
    pairs = []
    for a, b in combinations(range(len(texts)), 2):
        gap = find_gap(ranked, texts[a], texts[b], how)
        if gap:
            pairs.append(Pair(a, b, gap) if gap > 0 else Pair(b, a, -gap))
    dialogue = min((answer.id, answer.dialogue) for answer in answers)[1]
    return Ranking(index, name, dialogue, texts, [mean(given[text]) for text in texts], pairs)


def find_gap(ranked: Sequence[Mapping[str, float]], a: str, b: str, how: Consensus) -> float:
    """Say by how many ranks a is preferred to b; below 0 where b is, and 0 where neither is.

    Args:
        ranked: Ranks that each annotator gave.
        a: A completion.
        b: Another one.
        how: See :func:`find_consensus`.
    """
    gaps = [ranks[b] - ranks[a] for ranks in ranked if a in ranks and b in ranks]
    if not gaps:
        return 0.0
    if how == "mean_rank":
        return mean(gaps)
    decided = max(sum(gap > 0 for gap in gaps), sum(gap < 0 for gap in gaps))
    return median(gaps) if 2 * decided > len(gaps) else 0.0
