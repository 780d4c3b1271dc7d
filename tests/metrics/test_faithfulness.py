import pytest

from benchmarks.dialogsum import FOLDER, read_dialogsum
from benchmarks.faithfulness import measure_names, measure_swaps
from metrics.faithfulness import (
    CHECKS,
    SWAP_MARGIN,
    find_unknown_speakers,
    gain_by_swapping,
    swap_speakers,
    swapped_speakers,
    unfaithful_name,
    unfaithful_speaker,
)
from metrics.names import find_unknown_names

DIALOGUE = """#Person1#: Good morning, Mr. O'Brien. Did you fly to New York on monday?
#Person2#: No, Karen took the Americans to china. Ms. Mc Donald's plane was late.
#Person1#: And Jean-Paul, Tim? He has left microsoft, hasn't he?"""


@pytest.mark.parametrize(
    "summary",
    [
        "#Person1# asks Karen's friend and Mr. O'Brien about New York.",
        "Karen took Americans from America to China.",  # a form of a name; other case
        "Ms. McDonald is late. Jean-Paul left Microsoft.",  # two halves; hyphen
        "They met on Friday, the 1st of March, with Dad and Aunt Karen.",  # dates, kinship
        "After that, Both of them leave. Having left, Karen rests. Worried, she calls.",
        "Tims is late.",  # a short name and an s
        "The CEO of the USA's TV buys a T-shirt.",  # abbreviations
        "customers wait. Customers wait at the gate.",  # in small letters elsewhere
        "I'm told He doesn't know. Don't ask. They've left.",
        'He says: "However, no." (Perhaps not.)',
        "#Person1# and Person2 talk.",
        "",
    ],
)
def test_names_that_the_dialogue_has_and_words_that_are_none(summary: str) -> None:
    assert find_unknown_names(summary, DIALOGUE) == []


@pytest.mark.parametrize(
    ("summary", "names"),
    [
        ("#Person1# asks Tom's sister and Mr. Smith.", ["Tom", "Smith"]),
        ("Tom asks Karen. Tom waits.", ["Tom"]),  # at the start of a sentence, once
        ("Karen flies to New Orleans.", ["Orleans"]),
        ("Caren is late.", ["Caren"]),  # spelling counts
        ("Anne-Marie knows D'Angelo.", ["Anne", "Marie", "Angelo"]),
        ("Zoë met José and Ёлка.", ["Zoë", "José", "Ёлка"]),
        ("Ming, Alfred and Emily are late. Ming left.", ["Ming", "Alfred", "Emily"]),
        ("Karen asks Sterling. Sterling waits.", ["Sterling"]),  # a participle opens sentences only
        ("She says \u201cTom\u2019s late\u201d.", ["Tom"]),
        ("Parker is late.", ["Parker"]),
    ],
)
def test_names_that_the_dialogue_does_not_have(summary: str, names: list[str]) -> None:
    # "park" is no form of the name "Parker": only words with a capital lend their forms.
    assert find_unknown_names(summary, DIALOGUE + " She is in the park.") == names


def test_speakers_that_the_dialogue_does_not_have() -> None:
    assert find_unknown_speakers("#Person1# asks #Person2#.", DIALOGUE) == []
    assert find_unknown_speakers("#Person3# asks #Person10#, #Person3#.", DIALOGUE) == [
        "#Person3#", "#Person10#",
    ]  # fmt: skip
    # A model forgets signs; and a person is no speaker.
    assert find_unknown_speakers("#Person4 and Person5 and # person6# talk", DIALOGUE) == [
        "#Person4#", "#Person5#", "#Person6#",
    ]  # fmt: skip
    assert find_unknown_speakers("a table for person 7", DIALOGUE) == []
    assert find_unknown_speakers("#Person1# asks.", "Ann: Hello.\nBob: Hello.") == ["#Person1#"]


def test_checks_give_one_number_per_text() -> None:
    predictions = ["#Person3# asks Tom.", "#Person1# asks Karen."]
    dialogues, references = [DIALOGUE] * 2, [["#Person1# asks Karen."]] * 2
    for check in (unfaithful_speaker, unfaithful_name):
        assert check(predictions, dialogues, references) == [1.0, 0.0]
    assert list(CHECKS) == ["unfaithful_speaker", "unfaithful_name", "swapped_speakers"]
    with pytest.raises(ValueError, match="zip"):
        unfaithful_name(predictions, dialogues[:1], references)


def test_swapping_exchanges_the_first_two_speakers_only() -> None:
    text = "#Person1# asks #Person2#'s friend #Person3#, and Person1 waits."
    swapped = "#Person2# asks #Person1#'s friend #Person3#, and #Person2# waits."
    assert swap_speakers(text) == swapped
    assert find_unknown_speakers(swap_speakers(swapped), DIALOGUE) == ["#Person3#"]


def test_gain_by_swapping_is_that_of_rouge_2() -> None:
    reference = "#Person1# asks #Person2# to wait"
    # Pairs: person1 ask, ask person2, person2 to, to wait. Swapped they are all the reference's; as
    # it is only "to wait".
    assert gain_by_swapping("#Person2# asks #Person1# to wait", [reference]) == pytest.approx(0.75)
    assert gain_by_swapping(reference, [reference]) == pytest.approx(-0.75)
    both = [reference, "They wait together"]  # no pair in common with either
    assert gain_by_swapping("#Person2# asks #Person1# to wait", both) == pytest.approx(0.375)
    assert gain_by_swapping("They wait", [reference]) == 0  # names no speaker


def test_a_gain_within_the_margin_is_no_swap() -> None:
    long = " ".join(f"word{i}" for i in range(200))
    gain = gain_by_swapping(f"#Person2# asks {long}", [f"#Person1# asks {long}"])
    assert 0 < gain < SWAP_MARGIN
    references = [[f"#Person1# asks {long}"], ["#Person1# asks"]]
    predictions = [f"#Person2# asks {long}", "#Person2# asks"]
    assert swapped_speakers(predictions, ["", ""], references) == [0.0, 1.0]


@pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no DialogSum in {FOLDER}; set DIALOGSUM_DIR")
def test_rates_on_real_text_are_those_of_the_docs() -> None:
    rows = read_dialogsum("test")
    speakers, own, other = (share for _, share in measure_names(rows).values())
    assert speakers == 0
    assert own <= 0.01
    assert other >= 0.99
    as_written, exchanged = (share for _, share in measure_swaps(rows).values())
    assert as_written <= 0.025
    assert exchanged >= 0.65
