"""Several annotators: their consensus and their agreement, against values worked out by hand."""

from dataclasses import replace
from itertools import permutations
from random import Random

import pytest

from datamodules.consensus import Pair, find_consensus, mid_ranks, share_same_order
from datamodules.rankings import Answer


def say(*ranks: int | None, texts: str = "abcdefgh") -> Answer:
    return Answer("1", "x", tuple(texts[: len(ranks)]), None, ranks)


def pairs_of(*answers: Answer) -> dict[str, float]:
    """Pairs as "ab": the preferred text, the other, and their distance."""
    found = find_consensus(0, answers)
    texts = found.completions
    return {texts[j] + texts[k]: distance for j, k, distance in found.pairs}


def test_ties_share_the_mean_of_their_positions() -> None:
    assert mid_ranks(say(1, 2, 3)) == {"a": 1, "b": 2, "c": 3}
    assert mid_ranks(say(9, 2, 9, 4)) == {"b": 1, "d": 2, "a": 3.5, "c": 3.5}
    assert mid_ranks(say(2, None, 1, 2)) == {"c": 1, "a": 2.5, "d": 2.5}


def test_one_annotator_by_hand() -> None:
    found = find_consensus(7, [say(2, 3, 1)])
    assert found.index == 7
    assert found.completions == ["a", "b", "c"]
    assert found.ranks == [2, 3, 1]
    assert found.pairs == [Pair(0, 1, 1), Pair(2, 0, 1), Pair(2, 1, 2)]
    assert pairs_of(say(1, 1, 2)) == {"ac": 1.5, "bc": 1.5}  # a tie is no pair
    assert pairs_of(say(1, None, 2)) == {"ac": 1}  # nor is an unusable completion in one


def test_mean_rank_by_hand() -> None:
    # Mean ranks: a (1 + 2 + 1) / 3, b (2 + 1 + 3) / 3, c (3 + 3 + 2) / 3.
    answers = [say(1, 2, 3), say(2, 1, 3), say(1, 3, 2)]
    assert find_consensus(0, answers).ranks == pytest.approx([4 / 3, 2, 8 / 3])
    assert pairs_of(*answers) == pytest.approx({"ab": 2 / 3, "ac": 4 / 3, "bc": 2 / 3})
    assert pairs_of(say(1, 2), say(2, 1)) == {}
    # One strong voice against two weak ones: the gaps are -3, 1 and 1.
    assert pairs_of(say(4, 1, 2, 3), say(1, 2, 3, 4), say(1, 2, 3, 4))["ba"] == pytest.approx(1 / 3)


def test_annotators_may_have_seen_different_completions() -> None:
    one, two = say(1, 2, 3, texts="abc"), say(2, 1, texts="bd")
    assert pairs_of(one, two) == {"ab": 1, "ac": 2, "bc": 1, "db": 1}  # nobody compared a and d


def test_a_completion_that_most_call_unusable_is_left_out() -> None:
    assert set(pairs_of(say(1, 2, None), say(1, 2, None), say(3, 2, 1))) <= {"ab", "ba"}
    assert set(pairs_of(say(1, 2, None), say(2, 3, 1))) == {"ab", "ca", "cb"}


def test_neither_the_order_of_answers_nor_that_of_completions_matters() -> None:
    rng = Random(3)
    for _ in range(20):
        answers = []
        for _ in range(4):
            texts = rng.sample("abcde", 4)
            ranks = tuple(rng.choice([1, 2, 3, 3, None]) for _ in texts)
            answers.append(Answer("1", "x", tuple(texts), None, ranks))
        expected = find_consensus(0, answers)
        for order in list(permutations(range(4)))[::5]:
            turned = [
                replace(each, completions=each.completions[::-1], ranks=each.ranks[::-1])
                for each in (answers[place] for place in order)
            ]
            assert find_consensus(0, turned) == expected


def test_the_share_of_comparisons_that_agree_by_hand() -> None:
    one, two, three = say(1, 2, 3), say(1, 3, 2), say(2)
    # ab and ac agree, bc does not; the third has no two to compare.
    assert share_same_order([[one, two, three]]) == pytest.approx(2 / 3)
    assert share_same_order([[one, two], [say(3, 2, 1)]]) == pytest.approx(2 / 3)
    assert share_same_order([[one]]) is None
    assert share_same_order([[say(1, 2), say(1, 1)]]) is None
