"""Several annotators: their consensus and their agreement, against values worked out by hand."""

from dataclasses import replace
from itertools import combinations, permutations
from random import Random
from statistics import mean

import pytest

from datamodules.consensus import Pair, describe_agreement, find_consensus, mid_ranks
from datamodules.rankings import Answer
from metrics.agreement import ordinal_alpha, share_same_order


def say(*ranks: int | None, texts: str = "abcdefgh") -> Answer:
    return Answer("1", "x", tuple(texts[: len(ranks)]), None, ranks)


def pairs_of(answers: list[Answer], how: str = "mean_rank") -> dict[str, float]:
    """Pairs as "ab": the preferred text, the other, and their distance."""
    found = find_consensus(0, "1", answers, how)  # type: ignore[arg-type]
    texts = found.completions
    return {texts[j] + texts[k]: distance for j, k, distance in found.pairs}


def test_ranks_share_the_mean_of_their_places() -> None:
    assert mid_ranks(say(1, 2, 3)) == {"a": 1, "b": 2, "c": 3}
    assert mid_ranks(say(9, 2, 9, 4)) == {"b": 1, "d": 2, "a": 3.5, "c": 3.5}
    assert mid_ranks(say(2, None, 1, 2)) == {"c": 1, "a": 2.5, "d": 2.5}


def test_one_annotator_by_hand() -> None:
    found = find_consensus(7, "1", [say(2, 3, 1)], "mean_rank")
    assert found.index == 7
    assert found.completions == ["a", "b", "c"]
    assert found.ranks == [2, 3, 1]
    assert found.pairs == [Pair(0, 1, 1), Pair(2, 0, 1), Pair(2, 1, 2)]
    assert pairs_of([say(1, 1, 2)]) == {"ac": 1.5, "bc": 1.5}  # a tie is no pair
    assert pairs_of([say(1, None, 2)]) == {"ac": 1}  # nor is what is unusable in one
    assert pairs_of([say(1, None, 2)], "majority") == {"ac": 1}


def test_mean_rank_by_hand() -> None:
    # Mean ranks: a (1 + 2 + 1) / 3, b (2 + 1 + 3) / 3, c (3 + 3 + 2) / 3.
    answers = [say(1, 2, 3), say(2, 1, 3), say(1, 3, 2)]
    found = find_consensus(0, "1", answers, "mean_rank")
    assert found.ranks == pytest.approx([4 / 3, 2, 8 / 3])
    expected = {"ab": 2 / 3, "ac": 4 / 3, "bc": 2 / 3}
    assert pairs_of(answers) == pytest.approx(expected)
    assert pairs_of([say(1, 2), say(2, 1)]) == {}


def test_majority_by_hand() -> None:
    # One strong voice against two weak ones: the gaps are -3, 1 and 1.
    answers = [say(4, 1, 2, 3), say(1, 2, 3, 4), say(1, 2, 3, 4)]
    assert pairs_of(answers, "majority")["ab"] == 1
    assert pairs_of(answers)["ba"] == pytest.approx(1 / 3)
    # Half is no majority, be it against a tie or against the contrary.
    assert pairs_of([say(1, 2), say(1, 1)], "majority") == {}
    assert pairs_of([say(1, 2), say(2, 1)], "majority") == {}
    assert pairs_of([say(1, 2), say(1, 2), say(1, 1)], "majority") == {"ab": 1}
    # The distance is the median gap: 1, 1 and 3.
    three = [say(1, 2, 3, 4), say(1, 2, 3, 4), say(1, 4, 2, 3)]
    assert pairs_of(three, "majority")["ab"] == 1
    assert pairs_of(three)["ab"] == pytest.approx(5 / 3)


def test_a_majority_can_go_round_in_a_circle() -> None:
    circle = [say(1, 2, 3), say(3, 1, 2), say(2, 3, 1)]
    assert set(pairs_of(circle, "majority")) == {"ab", "bc", "ca"}
    assert pairs_of(circle) == {}


def test_annotators_may_have_seen_different_completions() -> None:
    one, two = say(1, 2, 3, texts="abc"), say(2, 1, texts="bd")
    assert pairs_of([one, two]) == {"ab": 1, "ac": 2, "bc": 1, "db": 1}  # nobody compared a and d


def test_a_completion_that_most_call_unusable_is_left_out() -> None:
    answers = [say(1, 2, None), say(1, 2, None), say(3, 2, 1)]
    assert set(pairs_of(answers, "majority")) == {"ab"}
    half = [say(1, 2, None), say(2, 3, 1)]
    assert set(pairs_of(half)) == {"ab", "ca", "cb"}


@pytest.mark.parametrize("how", ["mean_rank", "majority"])
def test_no_order_matters(how: str) -> None:
    rng = Random(3)
    for _ in range(20):
        answers = []
        for _ in range(4):
            texts = rng.sample("abcde", 4)
            ranks = tuple(rng.choice([1, 2, 3, 3, None]) for _ in texts)
            answers.append(Answer("1", "x", tuple(texts), None, ranks))
        expected = find_consensus(0, "1", answers, how)  # type: ignore[arg-type]
        for order in list(permutations(range(4)))[::5]:
            turned = [
                replace(each, completions=each.completions[::-1], ranks=each.ranks[::-1])
                for each in (answers[place] for place in order)
            ]
            assert find_consensus(0, "1", turned, how) == expected  # type: ignore[arg-type]


# Agreement ---------------------------------------------------------------------------------------

# Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", section C: four observers, twelve
# units, values of 1 to 5, and some missing. Its ordinal alpha is 0.815.
OBSERVED = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
    [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
]


def units(table: list[list[int | None]]) -> list[list[float]]:
    return [[value for value in unit if value is not None] for unit in zip(*table, strict=True)]


def slow_alpha(table: list[list[float]]) -> float:
    """Observed over expected disagreement, pair by pair."""
    judged = [unit for unit in table if len(unit) > 1]
    values = [value for unit in judged for value in unit]

    def distance(c: float, k: float) -> float:
        low, high = min(c, k), max(c, k)
        between = sum(low <= value <= high for value in values)
        return (between - (values.count(c) + values.count(k)) / 2) ** 2 if c != k else 0.0

    observed = sum(
        2 * distance(c, k) / (len(unit) - 1) for unit in judged for c, k in combinations(unit, 2)
    ) / len(values)
    expected = mean(2 * [distance(c, k) for c, k in combinations(values, 2)])
    return 1 - observed / expected


def test_alpha_is_that_of_the_paper() -> None:
    assert ordinal_alpha(units(OBSERVED)) == pytest.approx(0.815, abs=5e-4)


def test_alpha_against_the_slow_version() -> None:
    rng = Random(0)
    for _ in range(10):
        table = [[rng.choice([1, 2, 2.5, 4]) for _ in range(rng.randint(1, 4))] for _ in range(12)]
        assert ordinal_alpha(table) == pytest.approx(slow_alpha(table))


def test_alpha_at_its_ends() -> None:
    assert ordinal_alpha([[1, 1], [2, 2], [3, 3]]) == 1
    assert ordinal_alpha([[1, 2], [2, 1]]) < 0  # type: ignore[operator]
    assert ordinal_alpha([[1], [2]]) is None
    assert ordinal_alpha([[1, 1], [1, 1]]) is None


def test_the_share_of_comparisons_that_agree_by_hand() -> None:
    one, two, three = ({"a": 1.0, "b": 2.0, "c": 3.0}, {"a": 1.0, "b": 3.0, "c": 2.0}, {"a": 2.0})
    # ab and ac agree, bc does not; the third has no two to compare.
    share = share_same_order([[one, two, three]])
    assert share is not None and (share.value, share.n) == (pytest.approx(2 / 3), 3)
    assert share_same_order([[one]]) is None
    assert share_same_order([[one, {"a": 1.0, "b": 1.0}]]) is None


def test_agreement_is_of_those_dialogues_that_several_have_ranked() -> None:
    found = describe_agreement([[say(1, 2, 3), say(1, 3, 2)], [say(3, 2, 1)]])
    assert found is not None
    assert found["dialogues"] == 1 and found["comparisons"] == 3
    assert found["same_order"] == pytest.approx(2 / 3)
    assert found["alpha"] == pytest.approx(slow_alpha([[1, 1], [2, 3], [3, 2]]))
    assert describe_agreement([[say(1, 2)]]) is None
