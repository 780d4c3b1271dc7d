from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metrics.text_statistics import (
    NEED_DIALOGUE,
    STATISTICS,
    copy_density,
    fragment_lengths,
    length_ratio,
    novelty,
    words,
)

DIALOGUE = "#Person1#: The red car is fast. #Person2#: I like the blue car."
# tokens: person1 the red car is fast person2 i like the blue car

tokens = st.lists(st.sampled_from("abc"), max_size=12)


def one(metric: Callable[..., list[float]], prediction: str, dialogue: str = DIALOGUE) -> float:
    (value,) = metric([prediction], [dialogue], [["one two three four"]])
    return value


def test_words_are_separated_by_white_space() -> None:
    assert one(words, "#Person1#'s car,\n  it's fast") == 4
    assert one(words, "") == 0


def test_length_ratio_is_to_the_mean_of_the_references() -> None:
    assert length_ratio(["a b c"], [""], [["a b c d", "a b"]]) == [1.0]
    assert length_ratio(["a b c"], [""], [["a b", "a"]]) == [2.0]
    with pytest.raises(ValueError, match="references with words"):
        length_ratio(["a"], [""], [["  "]])


def test_novelty_by_hand() -> None:
    # "the red bike is fast": new is "bike"; "red bike", "bike is"; all three 3-grams but none.
    summary = "The red bike is fast."
    assert one(partial(novelty, n=1), summary) == 1 / 5
    assert one(partial(novelty, n=2), summary) == 2 / 4
    assert one(partial(novelty, n=3), summary) == 3 / 3
    assert one(partial(novelty, n=3), "red car is") == 0
    assert one(partial(novelty, n=1), "bike bike car") == 2 / 3  # each occurrence counts


def test_a_text_too_short_for_an_n_gram_has_nothing_new() -> None:
    assert one(partial(novelty, n=2), "bike") == 0
    assert one(partial(novelty, n=1), "") == 0


def test_copying_by_hand() -> None:
    # Fragments: "person1 the", "blue car", "is fast"; "very" is new.
    summary = "#Person1# the blue car very is fast"
    assert one(copy_density, summary) == (4 + 4 + 4) / 7
    assert one(copy_density, "") == 0
    assert one(copy_density, DIALOGUE) == 12  # copied whole: its own length


def test_the_longest_fragment_is_taken_wherever_it_stands() -> None:
    assert fragment_lengths(list("abc"), list("abxabc")) == [3]
    # It begins inside another match: a search that goes on behind "aa" would not see it.
    assert fragment_lengths(list("aab"), list("aaab")) == [3]


def slow_fragment_lengths(summary: list[str], source: list[str]) -> list[int]:
    """Try every length at every place."""
    windows = {
        tuple(source[i:j]) for i in range(len(source)) for j in range(i + 1, len(source) + 1)
    }
    lengths, start = [], 0
    while start < len(summary):
        fits = [
            length
            for length in range(1, len(summary) - start + 1)
            if tuple(summary[start : start + length]) in windows
        ]
        lengths += fits[-1:]
        start += max(fits, default=1)
    return lengths


@given(tokens, tokens)
def test_fragments_are_those_of_a_slow_search(summary: list[str], source: list[str]) -> None:
    assert fragment_lengths(summary, source) == slow_fragment_lengths(summary, source)


@given(tokens, tokens)
def test_a_word_is_either_copied_or_new(summary: list[str], source: list[str]) -> None:
    new = one(partial(novelty, n=1), " ".join(summary), " ".join(source))
    copied = sum(fragment_lengths(summary, source)) / max(len(summary), 1)
    assert copied == pytest.approx(1 - new if summary else 0)


def test_those_that_need_no_dialogue_do_not_look_at_it() -> None:
    assert {"words", "length_ratio"} == STATISTICS.keys() - NEED_DIALOGUE
    for name in ("words", "length_ratio"):
        assert one(STATISTICS[name], "a b", "") == one(STATISTICS[name], "a b", "a b c")
