"""Which examples a question gets, and how many of them fit."""

import json
import math
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonargparse import ArgumentParser, Namespace
from transformers import AutoTokenizer

from datamodules import (
    DialogSumDataModule,
    ExampleSelector,
    FixedExamples,
    Plain,
    RandomExamples,
    SimilarExamples,
    Template,
)
from datamodules.encoding import Encoder
from datamodules.reading import DataError, Row

WORDS = ["room", "train", "tea", "rain", "doctor", "Friday", "seven", "bus", "milk", "garden"]


def rows_of(*dialogues: str) -> list[Row]:
    return [Row(f"r{i}", dialogue, (f"sum {i}",)) for i, dialogue in enumerate(dialogues)]


def talk(count: int, seed: int) -> list[Row]:
    """Dialogues of few words, so that some are equally near and some the same."""
    draw = random.Random(seed)
    return rows_of(
        *(
            f"#Person1#: {' '.join(draw.choices(WORDS, k=draw.randint(1, 4)))}?\n"
            f"#Person2#: {draw.choice(WORDS)}!"
            for _ in range(count)
        )
    )


def fitted(selector: ExampleSelector, train: Sequence[Row], shots: int) -> ExampleSelector:
    selector.fit(train, shots, seed=42)
    return selector


def chosen(selector: ExampleSelector, *questions: Row) -> list[list[str]]:
    """Ids of the examples of each question, the most wanted first."""
    picks = selector.pick(questions)
    assert picks.shape == (len(questions), selector.shots)
    return [[selector.pool[place].id for place in row if place >= 0] for row in picks]


# What is chosen ---------------------------------------------------------------------------------


def test_random_examples_are_drawn_by_seed_and_the_same_for_all() -> None:
    train = rows_of(*(f"dialogue {i}" for i in range(10)))
    question = Row("q", "?", ("s",))
    expected = [f"r{i}" for i in np.random.default_rng(42).choice(10, 3, replace=False)]
    selector = fitted(RandomExamples(), train, 3)
    assert chosen(selector, question, question) == [expected, expected]
    drawn = {
        tuple(chosen(fitted(RandomExamples(seed), train, 3), question)[0]) for seed in range(5)
    }
    assert len(drawn) > 1
    assert chosen(fitted(RandomExamples(42), train, 3), question) == [expected]
    selector.fit(train, 3, seed=1)
    assert chosen(selector, question) == chosen(fitted(RandomExamples(1), train, 3), question)


def test_fixed_examples_stand_in_the_order_of_their_ids() -> None:
    train = rows_of("a", "b", "c", "d")
    question = Row("q", "?", ("s",))
    assert chosen(fitted(FixedExamples(["r3", "r0"]), train, 2), question) == [["r3", "r0"]]
    first = fitted(FixedExamples(["r3", "r0"]), train, 1)
    assert chosen(first, question) == [["r3"]]
    assert first.without_shown(train) == train[:3]  # the other may be trained on
    numbered = [row._replace(id=str(i)) for i, row in enumerate(train)]
    assert chosen(fitted(FixedExamples([2, "1"]), numbered, 2), question) == [["2", "1"]]


@pytest.mark.parametrize("ids", [[], ["a", "a"], [1, "1"]])
def test_fixed_ids_must_be_different_ones(ids: list[str | int]) -> None:
    with pytest.raises(ValueError, match="ids must be different ids of train rows, at least one"):
        FixedExamples(ids)


def test_the_same_dialogue_is_no_second_example() -> None:
    train = [*rows_of("a  b", "c"), Row("again", "a b ", ("other",))]
    assert fitted(SimilarExamples(), train, 2).pool == train[:2]
    with pytest.raises(DataError, match="3 shots, but only 2 train dialogues"):
        RandomExamples().fit(train, 3, seed=42)
    with pytest.raises(DataError, match=r"two of FixedExamples\.ids have the same dialogue"):
        FixedExamples(["r0", "again"]).fit(train, 2, seed=42)


def slowly_similar(train: list[Row], question: Row, shots: int) -> list[str]:
    """TF-IDF cosines written out: sublinear counts, smooth idf, vectors of length 1."""
    counts = [Counter(re.findall(r"\w+", row.dialogue.lower())) for row in train]
    within = Counter(word for count in counts for word in count)

    def vector(text: str) -> dict[str, float]:
        found = Counter(re.findall(r"\w+", text.lower()))
        weights = {
            word: (1 + math.log(n)) * (1 + math.log((1 + len(train)) / (1 + within[word])))
            for word, n in found.items()
            if word in within
        }
        length = math.sqrt(sum(value**2 for value in weights.values()))
        return {word: value / length for word, value in weights.items()}

    asked = vector(question.dialogue)
    scored = []
    for place, row in enumerate(train):
        own = vector(row.dialogue)
        cosine = sum(value * own.get(word, 0.0) for word, value in asked.items())
        if row.dialogue != question.dialogue:
            scored.append((-round(cosine, 9), place))
    return [train[place].id for _, place in sorted(scored)[:shots]]


@pytest.mark.parametrize("seed", range(4))
def test_similar_examples_are_those_of_a_slow_search(seed: int) -> None:
    train = list({row.dialogue: row for row in talk(60, seed)}.values())
    questions = [*talk(300, seed + 100), *train, Row("none", "nothing alike", ("s",))]
    selector = fitted(SimilarExamples(), train, 4)
    assert chosen(selector, *questions) == [slowly_similar(train, q, 4) for q in questions]
    assert chosen(selector, questions[-1]) == [[row.id for row in train[:4]]]


def test_of_equally_alike_dialogues_the_earlier_is_taken() -> None:
    train = rows_of("tea", "A: milk, rain", "B: rain; milk", "rain milk", "bus")
    selector = fitted(SimilarExamples(), train, 2)
    # "a" and "b" are words too, so the fourth is nearest and the first two of its kind tie.
    assert chosen(selector, Row("q", "milk rain!", ("s",))) == [["r3", "r1"]]
    assert chosen(selector, Row("q", "!?", ("s",))) == [["r0", "r1"]]


def test_similar_examples_need_a_word() -> None:
    with pytest.raises(DataError, match="no train dialogue has a word to compare by"):
        SimilarExamples().fit(rows_of("?", "!"), 1, seed=0)


@pytest.mark.parametrize(
    "make", [RandomExamples, SimilarExamples, lambda: FixedExamples(["r0", "r1", "r2"])]
)
def test_no_question_is_its_own_example(make: Callable[[], ExampleSelector]) -> None:
    train = rows_of("tea or milk", "bus or train", "rain again")
    selector = fitted(make(), train, 3)
    for row in train:
        for dialogue in (row.dialogue, f" {row.dialogue}\n".replace(" or", "\n or")):
            (shown,) = chosen(selector, Row("test_7", dialogue, ("other summary",)))
            assert sorted(shown) == sorted(other.id for other in train if other is not row)


class First(ExampleSelector):
    """A selector of one's own, which does not look at the question."""

    def rank(self, questions: Sequence[Row]) -> np.ndarray:
        return np.tile(np.arange(len(self.pool)), (len(questions), 1))


def test_a_selector_of_ones_own_is_kept_from_the_question_too() -> None:
    train = rows_of("a", "b", "c")
    assert chosen(fitted(First(), train, 2), *train) == [["r1", "r2"], ["r0", "r2"], ["r0", "r1"]]


# How many fit -----------------------------------------------------------------------------------


def slow_prompt(
    blocks: list[str], wanted: list[int], question: str, room: int, best_last: bool
) -> tuple[str, int]:
    """The prompt by plain lengths: a byte is a token, and EOS takes one."""
    kept: list[int] = []
    for place in wanted:
        if sum(len(blocks[k]) for k in [*kept, place]) + len(question) + 1 <= room:
            kept.append(place)
    shown = [blocks[place] for place in (reversed(kept) if best_last else kept)]
    return "".join(shown) + question[: room - 1], len(kept)


@pytest.mark.parametrize("best_last", [False, True])
def test_as_many_fit_as_in_a_slow_count(best_last: bool, t5: str) -> None:
    draw = random.Random(0)
    examples = [Row(str(i), chr(97 + i) * draw.randint(1, 40), ("s",)) for i in range(12)]
    subject = Encoder(AutoTokenizer.from_pretrained(t5), Plain(), examples, 130, 8, best_last)
    rows = [Row(str(i), "Q" * draw.randint(1, 140), ("s",)) for i in range(200)]
    wanted = [draw.sample(range(12), draw.randint(0, 4)) for _ in rows]
    picks = np.array([[*row, *[-1] * (4 - len(row))] for row in wanted])
    encoded = subject.encode(rows, picks)
    counts: set[int] = set()
    for i, row in enumerate(rows):
        text, count = slow_prompt(subject.blocks, wanted[i], row.dialogue, 130, best_last)
        assert subject.tokenizer.decode(encoded.sources[i]) == text + "</s>"
        assert encoded.shots[i] == count
        assert encoded.cut[i] == (len(row.dialogue) > 129)
        counts.add(count)
    assert counts == {0, 1, 2, 3, 4}


def test_the_least_similar_goes_first_and_the_nearest_stands_last(t5: str) -> None:
    train = rows_of("tea milk", "tea", "tea milk rain bus")
    selector = fitted(SimilarExamples(), train, 3)
    question = Row("q", "tea milk rain", ("s",))
    picks = selector.pick([question])
    shown = []
    for room in (77, 76, 62, 43, 34):
        subject = Encoder(
            AutoTokenizer.from_pretrained(t5), Template("<{dialogue}>"), selector.pool, room, 8,
            selector.best_last,
        )  # fmt: skip
        (source,) = subject.encode([question], picks).sources
        text = subject.tokenizer.decode(source, skip_special_tokens=True)
        shown.append(re.findall("<([^>]*)>", text))
    asked = question.dialogue
    # The examples take 28, 19 and 14 tokens, from the nearest on, and the question 16.
    assert shown == [
        ["tea", "tea milk", "tea milk rain bus", asked],
        ["tea milk", "tea milk rain bus", asked],
        ["tea", "tea milk rain bus", asked],  # no room for the second nearest, but for the third
        ["tea milk", asked],
        ["tea", asked],
    ]


# Through the data module ------------------------------------------------------------------------


@pytest.fixture
def make(tmp_path: Path, t5: str) -> Callable[..., DialogSumDataModule]:
    """Data with a dialogue in the test split that the train split has too."""
    train = talk(30, 0)
    splits = {
        "train": train,
        "val": [row._replace(id=f"v{i}") for i, row in enumerate(talk(5, 8))],
        "test": [
            row._replace(id=f"t{i}") for i, row in enumerate([*talk(20, 9), train[3], train[5]])
        ],
    }
    for split, rows in splits.items():
        lines = [
            json.dumps({"id": row.id, "dialogue": row.dialogue, "summary": row.references[0]})
            for row in rows
        ]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))

    def make(**settings: Any) -> DialogSumDataModule:
        defaults: dict[str, Any] = {
            "source": str(tmp_path), "tokenizer": t5, "prompt": Template("<{dialogue}>"),
        }  # fmt: skip
        return DialogSumDataModule(**{**defaults, **settings})

    return make


@pytest.mark.parametrize(
    "selector", [RandomExamples(), FixedExamples(["r3", "r5"]), SimilarExamples()]
)
def test_every_split_is_shown_other_train_dialogues_solved(
    selector: ExampleSelector, make: Callable[..., DialogSumDataModule]
) -> None:
    solved = {row.dialogue: row.references[0] for row in talk(30, 0)}
    data = make(shots=2, examples=selector)
    data.setup("fit")
    data.setup("test")
    for split, dataset in data.datasets.items():
        for index, row in enumerate(dataset.rows):
            prompt = data.tokenizer.decode(dataset[index].source, skip_special_tokens=True)
            found = re.findall(r"<([^>]*)>\n(.*)\n\n\n", prompt)
            assert prompt.endswith(f"<{row.dialogue}>")
            assert len(found) == dataset.encoded.shots[index], split
            assert row.dialogue not in dict(found)
            for dialogue, summary in found:
                assert dialogue in solved
                assert summary.startswith("sum ")
    shared = not isinstance(selector, SimilarExamples)
    assert len(data.datasets["train"]) == 30 - 2 * shared


def test_what_fitted_is_described(make: Callable[..., DialogSumDataModule]) -> None:
    data = make(shots=2, examples=FixedExamples(["r3", "r5"]), max_source_length=512)
    data.setup("test")
    # Two of the 22 questions are an example themselves, and have the other alone.
    assert data.describe() == {
        "test": {
            "rows": 22, "shortened": 0, "shots_asked": 2, "shots_fitted_mean": 42 / 22,
            "shots_fitted": {"2": 20, "1": 2},
        }
    }  # fmt: skip
    (short := make(max_source_length=30)).setup("fit")
    told = short.describe()
    assert set(told) == {"train", "validation"}
    assert told["validation"]["shots_fitted"] == {"0": 5}
    cut = [len(row.dialogue) + 3 > 30 for row in short.datasets["validation"].rows]
    assert told["validation"]["shortened"] == sum(cut) > 0


def test_a_selector_of_two_data_modules_serves_both(
    make: Callable[..., DialogSumDataModule],
) -> None:
    selector = SimilarExamples()
    (alone := make(shots=1, examples=SimilarExamples())).setup("test")
    (first := make(shots=1, examples=selector)).setup("fit")
    make(shots=1, examples=selector, max_train_rows=2).setup("fit")
    first.setup("test")
    both = [data.datasets["test"].encoded.sources for data in (alone, first)]
    assert [ids.tolist() for ids in both[0]] == [ids.tolist() for ids in both[1]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"examples": SimilarExamples()}, "SimilarExamples has no effect if shots is 0"),
        (
            {"examples": FixedExamples(["r1"]), "shots": 2, "batch_size": 0},
            "batch_size.*shots is 2, but FixedExamples has 1 ids",
        ),
    ],
)
def test_settings_that_do_not_go_together(
    settings: dict[str, Any], message: str, make: Callable[..., DialogSumDataModule]
) -> None:
    with pytest.raises(ValueError, match=message):
        make(**settings)


def test_ids_of_other_splits_are_refused(make: Callable[..., DialogSumDataModule]) -> None:
    for name in ("t1", "v1", "r30"):
        with pytest.raises(DataError, match=f"has no row {name} .*has 30 rows, the first is r0"):
            make(shots=1, examples=FixedExamples(["r1", name])).setup("test")
    with pytest.raises(DataError, match=r"no row r9 .*max_train_rows"):
        make(shots=1, examples=FixedExamples(["r9"]), max_train_rows=9).setup("test")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], type(None)),
        (["--data.examples=SimilarExamples"], SimilarExamples),
        (["--data.examples=RandomExamples", "--data.examples.seed=7"], RandomExamples),
        (["--data.examples=FixedExamples", "--data.examples.ids=[train_1, 40]"], FixedExamples),
        (
            ['--data={"examples": {"class_path": "FixedExamples", "init_args": {"ids": ["a"]}}}'],
            FixedExamples,
        ),
    ],
)
def test_selectors_are_named_by_class_on_the_command_line(
    arguments: list[str], expected: type
) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(DialogSumDataModule, "data")
    shots = [] if expected is type(None) else ["--data.shots=1"]
    parsed = parser.parse_args(["--data.source=mini", "--data.tokenizer=mini", *shots, *arguments])
    built: Namespace = parser.instantiate(parsed)
    examples = built.data.examples
    assert type(examples) is expected
    if "train_1" in str(arguments):
        assert examples.ids == ["train_1", "40"]
    if "seed" in str(arguments):
        assert examples.seed == 7
