"""Combine the rankings of several annotators into preference pairs."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from statistics import mean, median
from typing import Any, Literal, NamedTuple, get_args

from datamodules.rankings import (
    Answer,
    group_by_dialogue,
    keep_latest,
    read_answers,
)
from datamodules.reading import DataError, OnBadRow, Split, normalize_whitespace, refuse_bad_rows
from datamodules.sources import open_local
from datamodules.splits import check_holdout, split_by_hash
from metrics.agreement import ordinal_alpha, share_same_order

logger = logging.getLogger(__name__)

Consensus = Literal["mean_rank", "majority"]

Groups = dict[str, list[Answer]]
"""Answers by dialogue id."""

_EXAMPLE = (
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
    """The combined judgement of all annotators on one dialogue.

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


class RankedSplit(NamedTuple):
    """The rankings of a split, and counts of what they were made from (JSON types)."""

    rankings: list[Ranking]
    description: dict[str, Any]


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


def find_consensus(index: int, name: str, answers: Sequence[Answer], how: Consensus) -> Ranking:
    """Combine the answers on one dialogue into one ranking.

    Two completions are compared by the annotators who ranked both, so annotators may have seen
    different completions. With r the ranks of :func:`mid_ranks`, an annotator's gap is r(b) - r(a).

    - ``mean_rank``: a is preferred if the mean gap is positive; the mean gap is the distance. If
      all annotators ranked the same completions, these are differences of mean ranks.
    - ``majority``: a is preferred if more than half of the gaps are positive. The distance is the
      median gap.

    Completions that more annotators call unusable than rank are left out.

    Args:
        index: Row number of the ranking in its split.
        name: Id of the dialogue.
        answers: At least one answer with ranks, in any order.
        how: The kind of consensus.
    """
    ranked = [mid_ranks(answer) for answer in answers]
    shown = [text for answer in answers for text in dict.fromkeys(answer.completions)]
    given = {text: [ranks[text] for ranks in ranked if text in ranks] for text in shown}
    texts = sorted(
        text for text in given if given[text] and 2 * len(given[text]) >= shown.count(text)
    )
    pairs = []
    for a, b in combinations(range(len(texts)), 2):
        gap = find_gap(ranked, texts[a], texts[b], how)
        if gap:
            pairs.append(Pair(a, b, gap) if gap > 0 else Pair(b, a, -gap))
    dialogue = min((answer.id, answer.dialogue) for answer in answers)[1]
    return Ranking(index, name, dialogue, texts, [mean(given[text]) for text in texts], pairs)


def find_gap(ranked: Sequence[Mapping[str, float]], a: str, b: str, how: Consensus) -> float:
    """Return by how many ranks a is preferred to b; negative if b is, 0 if neither is.

    Args:
        ranked: The ranks given by each annotator.
        a: A completion.
        b: Another completion.
        how: See :func:`find_consensus`.
    """
    gaps = [ranks[b] - ranks[a] for ranks in ranked if a in ranks and b in ranks]
    if not gaps:
        return 0.0
    if how == "mean_rank":
        return mean(gaps)
    decided = max(sum(gap > 0 for gap in gaps), sum(gap < 0 for gap in gaps))
    return median(gaps) if 2 * decided > len(gaps) else 0.0


# One source ---------------------------------------------------------------------------------------


@dataclass
class RankingReader:
    """Reads the rankings of a source.

    Args:
        name: ``mini``, a folder with one file of answers per split, or one file of answers.
        consensus: How the answers of several annotators are combined.
        on_bad_row: Stop at lines that are not answers, or skip and count them.
        holdout: Share of the dialogues of a single file for validation, and for testing.

    Raises:
        ValueError: If settings are out of range; one message names all of them.
    """

    name: str
    consensus: Consensus = "mean_rank"
    on_bad_row: OnBadRow = "stop"
    holdout: float = 0.1
    _splits: dict[Split, RankedSplit] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        problems = [
            f"{name} must be one of {', '.join(known)}, got {value!r}"
            for name, value, known in (
                ("consensus", self.consensus, get_args(Consensus)),
                ("on_bad_row", self.on_bad_row, get_args(OnBadRow)),
            )
            if value not in known
        ]
        problems += check_holdout(self.holdout)
        if problems:
            raise ValueError("data: " + "; ".join(problems))

    def read(self, splits: Sequence[Split]) -> dict[Split, RankedSplit]:
        """Read the rankings of some splits, each split only once.

        Raises:
            DataError: If a split is missing, has bad lines (all of them in one message), or no
                preference at all.
        """
        if missing := [split for split in splits if split not in self._splits]:
            self._splits |= self._read(missing)
            warn_about_overlap({split: found.rankings for split, found in self._splits.items()})
        return {split: self._splits[split] for split in splits}

    def _read(self, splits: Sequence[Split]) -> dict[Split, RankedSplit]:
        source = open_local(self.name, "rankings")
        files = source.find(splits)
        groups: dict[Path, Groups] = {}
        problems = []
        for path in dict.fromkeys(files.values()):
            parsed = read_answers(path)
            groups[path], clashes = group_by_dialogue(parsed.answers)
            problems += [*parsed.problems, *clashes]
        refuse_bad_rows(problems, self.on_bad_row, _EXAMPLE)
        parts = {split: groups[path] for split, path in files.items()}
        if source.is_single_file:
            chosen = split_by_hash(groups[source.path], self.holdout)
            parts = {
                split: {name: part[name] for name in part if chosen[name] == split}
                for split, part in parts.items()
            }
        return {split: self._combine(split, part, len(problems)) for split, part in parts.items()}

    def _combine(self, split: Split, groups: Groups, bad_rows: int) -> RankedSplit:
        """Find the consensus on each dialogue of a split."""
        latest = {name: keep_latest(answers) for name, answers in groups.items()}
        ranked = {
            name: [answer for answer in answers if any(answer.ranks or ())]
            for name, answers in latest.items()
        }
        ranked = {name: answers for name, answers in ranked.items() if answers}
        rankings: list[Ranking] = []
        for name, answers in ranked.items():
            ranking = find_consensus(len(rankings), name, answers, self.consensus)
            if ranking.pairs:
                rankings.append(ranking)
        answers = [answer for each in ranked.values() for answer in each]
        description = {
            "rankings": len(rankings),
            "pairs": sum(len(ranking.pairs) for ranking in rankings),
            "answers": len(answers),
            "annotators": len({answer.annotator for answer in answers} - {None}),
            "skipped": sum(map(len, latest.values())) - len(answers),
            "replaced": sum(len(groups[name]) - len(latest[name]) for name in groups),
            "without_pairs": len(ranked) - len(rankings),
            "bad_rows": bad_rows,
            "agreement": describe_agreement(ranked.values()),
        }
        if not rankings:
            raise DataError(
                f"data: {self.name} has no {split} dialogue with two completions of which one is "
                f"preferred ({description})"
            )
        counts = {name: n for name, n in description.items() if isinstance(n, int) and n}
        told = ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in counts.items())
        logger.info("%s: %s; agreement %s", split, told, description["agreement"] or "unknown")
        return RankedSplit(rankings, description)


def describe_agreement(dialogues: Iterable[Sequence[Answer]]) -> dict[str, Any] | None:
    """Measure the agreement on dialogues ranked by at least two annotators.

    Returns:
        ``alpha``, Krippendorff's alpha of the ranks; ``same_order``, the share of ``comparisons``
        (two completions, two annotators) with the same order; ``dialogues``, their number. None if
        nothing was ranked twice.
    """
    ranked = [[mid_ranks(answer) for answer in answers] for answers in dialogues]
    ranked = [annotators for annotators in ranked if len(annotators) > 1]
    share = share_same_order(ranked)
    if share is None:
        return None
    units = [
        [ranks[text] for ranks in annotators if text in ranks]
        for annotators in ranked
        for text in sorted({text for ranks in annotators for text in ranks})
    ]
    return {
        "alpha": ordinal_alpha(units),
        "same_order": share.value,
        "comparisons": share.n,
        "dialogues": len(ranked),
    }


def warn_about_overlap(splits: Mapping[Split, Sequence[Ranking]]) -> None:
    """Warn about dialogues in two splits: scores on them measure what was memorized."""
    known = {
        split: {normalize_whitespace(ranking.dialogue) for ranking in rankings}
        for split, rankings in splits.items()
    }
    for one, two in combinations(known, 2):
        if shared := known[one] & known[two]:
            logger.warning(
                "%d dialogue(s) are in both the %s and the %s split, so scores on them are too "
                "good. To have one file split by dialogue, use the file itself as data.source",
                len(shared), one, two,
            )  # fmt: skip
