"""The rankings of a source, split by split: the miniature, a folder, or one file of answers."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, get_args

from datamodules.answers import Answer, group_by_dialogue, keep_last, plain, read_answers
from datamodules.consensus import Consensus, Ranking, find_consensus, mid_ranks
from datamodules.reading import DataError, OnBadRow, Split, refuse_bad_rows
from datamodules.shares import find_fraction_problem, read_shares
from metrics.agreement import ordinal_alpha, share_same_order
from tools.mini.generator import generate_rankings

logger = logging.getLogger(__name__)

Groups = dict[str, list[Answer]]
"""Answers by the id of their dialogue."""


class RankedSplit(NamedTuple):
    """The rankings of a split, and what they were made of, in JSON's types."""

    rankings: list[Ranking]
    description: dict[str, Any]


@dataclass
class RankingReader:
    """Reads the rankings of a source.

    Args:
        name: ``mini``, a folder with a file of answers for each split, or one such file.
        consensus: How the answers of several annotators become one ranking.
        on_bad_row: Stop at lines that are no answers, or skip and count them.
        validation_fraction: Share of the dialogues of a single file that are for validation.
        test_fraction: Share of them that are for the test.
        split_seed: Which dialogues these are.

    Raises:
        ValueError: If settings are out of range, all of them in one message.
    """

    name: str
    consensus: Consensus = "mean_rank"
    on_bad_row: OnBadRow = "stop"
    validation_fraction: float = 0.1
    test_fraction: float = 0.1
    split_seed: int = 0
    bad_rows: int = field(default=0, init=False)
    """How many were skipped in the files that were read last."""
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
        shares = find_fraction_problem(self.validation_fraction, self.test_fraction)
        problems += [shares] if shares else []
        if problems:
            raise ValueError("data: " + "; ".join(problems))

    def read(self, splits: Sequence[Split]) -> dict[Split, RankedSplit]:
        """Give some splits, each read once.

        Raises:
            DataError: If a split is missing, has bad lines (all of them in one message), or has no
                two completions of which one is preferred.
        """
        missing = [split for split in splits if split not in self._splits]
        if missing:
            self._splits |= self._read(missing)
            warn_of_shared({split: self._splits[split].rankings for split in self._splits})
        return {split: self._splits[split] for split in splits}

    def _read(self, splits: Sequence[Split]) -> dict[Split, RankedSplit]:
        if self.name == "mini":
            parts: dict[Split, Groups] = {
                split: {row.id: [row] for row in mini_answers(split)} for split in splits
            }
        else:
            fractions = self.validation_fraction, self.test_fraction
            parts = read_shares(self.name, splits, self._group, fractions, self.split_seed)
        return {split: self._make(split, parts[split]) for split in splits}

    def _group(self, files: Mapping[Split, Path]) -> dict[Split, Groups]:
        """Read files and put the answers on one dialogue together."""
        groups, problems = {}, []
        for split, path in files.items():
            reading = read_answers(path)
            groups[split], clashes = group_by_dialogue(reading.answers)
            problems += [*reading.problems, *clashes]
        refuse_bad_rows(
            problems,
            self.on_bad_row,
            'An answer is {"id": "1", "dialogue": "...", "completions": ["...", "..."], "ranks": '
            '[1, 2]} or {"prompt": "...", "chosen": "...", "rejected": "..."}',
        )
        self.bad_rows = len(problems)
        return groups

    def _make(self, split: Split, groups: Groups) -> RankedSplit:
        """Find the consensus on each dialogue of a split."""
        kept = {name: keep_last(answers) for name, answers in groups.items()}
        given = {
            name: [answer for answer in answers if any(answer.ranks)]
            for name, answers in kept.items()
        }
        given = {name: answers for name, answers in given.items() if answers}
        rankings: list[Ranking] = []
        for name, answers in given.items():
            ranking = find_consensus(len(rankings), name, answers, self.consensus)
            if ranking.pairs:
                rankings.append(ranking)
        answers = [answer for each in given.values() for answer in each]
        description = {
            "rankings": len(rankings),
            "pairs": sum(len(ranking.pairs) for ranking in rankings),
            "answers": len(answers),
            "annotators": len({answer.annotator for answer in answers} - {None}),
            "passed_over": sum(not any(a.ranks) for each in kept.values() for a in each),
            "replaced": sum(len(groups[name]) - len(kept[name]) for name in groups),
            "without_pairs": len(given) - len(rankings),
            "bad_rows": self.bad_rows,
            "agreement": describe_agreement(given.values()),
        }
        if not rankings:
            raise DataError(
                f"data: {self.name} has no {split} dialogue with two completions of which one is "
                f"preferred ({description})"
            )
        logger.info("%s: %s", split, tell(description))
        return RankedSplit(rankings, description)


def mini_answers(split: Split) -> list[Answer]:
    """Give the miniature's own rankings as answers of one annotator."""
    return [
        Answer("mini", row["id"], row["dialogue"], tuple(row["completions"]), tuple(row["ranks"]))
        for row in generate_rankings(split)
    ]


def describe_agreement(dialogues: Iterable[Sequence[Answer]]) -> dict[str, Any] | None:
    """Measure how far annotators agree on the dialogues that two or more of them have ranked.

    Returns:
        ``alpha``, Krippendorff's, of the ranks; ``same_order``, the share of ``comparisons``, each
        of two completions by two annotators, that go the same way; ``dialogues``, how many these
        are. None where nothing was ranked twice.
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


def tell(description: dict[str, Any]) -> str:
    """Put a description of a split into words."""
    text = (
        "{rankings} rankings with {pairs} pairs, from {answers} answers; {passed_over} passed "
        "over, {replaced} replaced by a later one, {without_pairs} dialogues without a preference"
    ).format(**description)
    if found := description["agreement"]:
        alpha = "not defined" if found["alpha"] is None else f"{found['alpha']:.2f}"
        text += (
            f"; on {found['dialogues']} dialogues with several annotators Krippendorff's alpha is "
            f"{alpha}, and {100 * found['same_order']:.0f} % of {found['comparisons']} comparisons "
            "agree"
        )
    return text


def warn_of_shared(splits: dict[Split, list[Ranking]]) -> None:
    """Warn where a dialogue stands in two splits: what is measured on it was learnt."""
    known: dict[str, set[str]] = {
        split: {plain(ranking.dialogue) for ranking in rankings}
        for split, rankings in splits.items()
    }
    for one, two in (("train", "validation"), ("train", "test"), ("validation", "test")):
        if shared := known.get(one, set()) & known.get(two, set()):
            logger.warning(
                "%d dialogue(s) stand both in the %s and in the %s split; scores on them say "
                "little. Name one file of answers as data.source to have it split by dialogue",
                len(shared), one, two,
            )  # fmt: skip
