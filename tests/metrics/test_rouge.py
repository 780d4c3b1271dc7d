from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer

from benchmarks.dialogsum import FOLDER, read_dialogsum
from metrics.rouge import rouge
from metrics.rouge_scores import KEYS, score_rouge, split_sentences, tokenize

MAT = "the cat sat on the mat"


def score(prediction: str, *references: str, use_stemmer: bool = True) -> dict[str, float]:
    values = score_rouge([prediction], [references], use_stemmer)
    return {key: value for key, (value,) in values.items()}


def test_values_by_hand() -> None:
    scores = score("the cat sat", MAT)
    # rouge1: 3 of 3 and 3 of 6 words; rouge2: 2 of 2 and 2 of 5 pairs; rougeL: "the cat sat".
    assert scores == pytest.approx(
        {"rouge1": 2 / 3, "rouge2": 4 / 7, "rougeL": 2 / 3, "rougeLsum": 2 / 3}
    )


def test_several_references_give_mean_and_best() -> None:
    scores = score("the cat sat", MAT, "the cat sat", "dogs")
    assert scores["rouge1"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert scores["rouge2"] == pytest.approx((4 / 7 + 1 + 0) / 3)
    assert scores["rouge1_best"] == scores["rouge2_best"] == 1


def test_one_reference_has_no_best() -> None:
    assert set(score("a cat", "a dog")) == set(KEYS)


def test_stemmer_is_on_unless_told() -> None:
    assert score("running cats", "run cat")["rouge1"] == 1
    assert score("running cats", "run cat", use_stemmer=False)["rouge1"] == 0


def test_lsum_is_over_sentences() -> None:
    # Sentence by sentence all is there; in one sequence only half is in order.
    scores = score("Bob comes. Ann goes.", "Ann goes. Bob comes.")
    assert scores["rougeLsum"] == 1
    assert scores["rougeL"] == 0.5


def test_split_sentences() -> None:
    assert split_sentences(" One. Two!  Three?\nFour 3.5 ") == "One.\nTwo!\nThree?\nFour 3.5"


words = st.sampled_from(
    ["Running", "don't", "caresses", "été", "3.5", "#Person1#", "as", "İ", "\n"]
)


@given(st.lists(words | st.text(max_size=8)).map(" ".join), st.booleans())
def test_tokens_are_those_of_rouge_score(text: str, use_stemmer: bool) -> None:
    assert list(tokenize(text, use_stemmer)) == DefaultTokenizer(use_stemmer).tokenize(text)


@pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no DialogSum in {FOLDER}; set DIALOGSUM_DIR")
@pytest.mark.parametrize("use_stemmer", [True, False])
@pytest.mark.parametrize("count", [1, 3])
def test_values_are_those_of_rouge_score_on_real_text(use_stemmer: bool, count: int) -> None:
    rows = [row.references[:count] for row in read_dialogsum("test")]
    predictions = [row.references[0] for row in read_dialogsum("validation")][: len(rows)]
    # Real predictions are closer to their references than those of other dialogues.
    predictions[::2] = [row.references[2] for row in read_dialogsum("test")][::2]
    found = score_rouge(predictions, rows, use_stemmer, with_best=True)
    scorer = RougeScorer(list(KEYS), use_stemmer=use_stemmer)
    for place, (prediction, references) in enumerate(zip(predictions, rows, strict=True)):
        plain = [scorer.score(text, prediction) for text in references]
        split = [
            scorer.score(split_sentences(text), split_sentences(prediction)) for text in references
        ]
        for key in KEYS:
            # Only rougeLsum knows of lines; the others are equal on the texts as they are.
            scores = [one[key].fmeasure for one in (split if key == "rougeLsum" else plain)]
            assert found[key][place] == pytest.approx(sum(scores) / count, abs=1e-9)
            assert found[f"{key}_best"][place] == pytest.approx(max(scores), abs=1e-9)


def test_examples_keep_their_order_and_may_differ_in_references() -> None:
    values = score_rouge(["the cat sat", "dog", MAT], [[MAT], [MAT, "dog"], [MAT]])
    assert values["rouge1"] == pytest.approx([2 / 3, 1 / 2, 1])
    assert values["rouge1_best"] == pytest.approx([2 / 3, 1, 1])
    assert set(score_rouge(["a"], [["b"]], with_best=True)) == {*KEYS, *(f"{k}_best" for k in KEYS)}
    assert score_rouge([], []) == {key: [] for key in KEYS}


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        (["a", "b"], [["a"]], "2 predictions against 1 lists"),
        (["a"], ["a"], "list of at least one reference"),
        (["a"], [[]], "list of at least one reference"),
        ("a", [["a"]], "pass a list of predictions"),
    ],
)
def test_examples_that_do_not_pair_are_refused(
    predictions: Any, references: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        score_rouge(predictions, references)


def test_the_reward_function() -> None:
    texts, references = ["the cat sat", "dogs"], [[MAT, "dogs"], ["cats"]]
    assert rouge(texts, ["", ""], references, "rouge1") == pytest.approx([1 / 3, 0])
    assert rouge(texts, ["", ""], references, "rouge1_best") == pytest.approx([2 / 3, 0])
    with pytest.raises(ValueError, match="ROUGE has no 'rouge9'"):
        rouge(texts, ["", ""], references, "rouge9")
