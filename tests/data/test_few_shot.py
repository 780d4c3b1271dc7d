"""Which examples a question has, and how many of them fit."""

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
    """Return the ids of the examples of each question, best first."""
    return [[selector.pool[place].id for place in row] for row in selector.pick(questions)]


# What is chosen ---------------------------------------------------------------------------------


def test_random_examples_are_drawn_by_seed_and_the_same_for_all() -> None:
    train = rows_of(*(f"dialogue {i}" for i in range(10)))
    question = Row("q", "?", ("s",))
    expected = [f"r{i}" for i in np.random.default_rng(42).choice(10, 3, replace=False)]
    selector = fitted(RandomExamples(), train, 3)
    assert chosen(selector, question, question) == [expected, expected]
    selector.fit(train, 3, seed=1)
    assert chosen(selector, question, question) != [expected, expected]


def test_the_same_dialogue_is_no_second_example() -> None:
    train = [*rows_of("a  b", "c"), Row("again", "a b ", ("other",))]
    assert fitted(SimilarExamples(), train, 2).pool == train[:2]
    with pytest.raises(DataError, match="3 shots, but only 2 train dialogues"):
        RandomExamples().fit(train, 3, seed=42)


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


class First(ExampleSelector):
    """A custom selector that does not look at the question."""

    def rank(self, questions: Sequence[Row]) -> Sequence[Sequence[int]]:
        return [range(len(self.pool))] * len(questions)


@pytest.mark.parametrize("make", [RandomExamples, SimilarExamples, First])
def test_no_question_is_its_own_example(make: Callable[[], ExampleSelector]) -> None:
    train = rows_of("tea or milk", "bus or train", "rain again")
    selector = fitted(make(), train, 3)
    for row in train:
        for dialogue in (row.dialogue, f" {row.dialogue}\n".replace(" or", "\n or")):
            (shown,) = chosen(selector, Row("test_7", dialogue, ("other summary",)))
            assert sorted(shown) == sorted(other.id for other in train if other is not row)


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
    encoded = subject.encode(rows, wanted)
    counts: set[int] = set()
    for i, row in enumerate(rows):
        text, count = slow_prompt(subject.blocks, wanted[i], row.dialogue, 130, best_last)
        assert subject.tokenizer.decode(encoded[i].source) == text + "</s>"
        assert encoded[i].shots == count
        assert encoded[i].cut == (len(row.dialogue) > 129)
        counts.add(count)
    assert counts == {0, 1, 2, 3, 4}


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


@pytest.mark.parametrize("selector", [RandomExamples(), SimilarExamples()])
def test_every_split_is_shown_other_train_dialogues_solved(
    selector: ExampleSelector, make: Callable[..., DialogSumDataModule]
) -> None:
    solved = {row.dialogue: row.references[0] for row in talk(30, 0)}
    data = make(shots=2, examples=selector)
    data.setup("fit")
    data.setup("test")
    for split, dataset in data.datasets.items():
        for row in dataset:
            prompt = data.tokenizer.decode(row.source, skip_special_tokens=True)
            found = re.findall(r"<([^>]*)>\n(.*)\n\n\n", prompt)
            assert prompt.endswith(f"<{row.dialogue}>")
            assert 1 <= len(found) <= 2, split
            assert row.dialogue not in dict(found)
            for dialogue, summary in found:
                assert dialogue in solved
                assert summary.startswith("sum ")
    shared = not isinstance(selector, SimilarExamples)
    assert len(data.datasets["train"]) == 30 - 2 * shared


def test_what_fits_is_described(make: Callable[..., DialogSumDataModule]) -> None:
    data = make(shots=2, examples=SimilarExamples(), max_source_length=90)
    data.setup("test")
    fitted = [data.tokenizer.decode(row.source).count("\n\n\n") for row in data.datasets["test"]]
    assert data.describe() == {
        "test": {
            "rows": 22, "shortened": 0, "shots_asked": 2, "shots_fitted_mean": sum(fitted) / 22
        }
    }  # fmt: skip
    assert len(set(fitted)) > 1
    (short := make(max_source_length=30)).setup("fit")
    described = short.describe()
    assert set(described) == {"train", "validation"}
    cut = [len(row.dialogue) + 3 > 30 for row in short.datasets["validation"]]
    assert described["validation"]["shortened"] == sum(cut) > 0


def test_a_selector_of_two_data_modules_serves_both(
    make: Callable[..., DialogSumDataModule],
) -> None:
    selector = SimilarExamples()
    (alone := make(shots=1, examples=SimilarExamples())).setup("test")
    (first := make(shots=1, examples=selector)).setup("fit")
    make(shots=1, examples=selector, max_train_rows=2).setup("fit")
    first.setup("test")
    one, two = ([row.source.tolist() for row in d.datasets["test"]] for d in (alone, first))
    assert one == two


def test_a_selector_without_shots_is_refused(make: Callable[..., DialogSumDataModule]) -> None:
    with pytest.raises(ValueError, match="SimilarExamples has no effect if shots is 0"):
        make(examples=SimilarExamples())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], type(None)),
        (["--data.examples=SimilarExamples"], SimilarExamples),
        (["--data.examples=RandomExamples"], RandomExamples),
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
