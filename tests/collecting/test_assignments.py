"""Who is shown what, in which order, and how answers are read."""

from collections import Counter
from itertools import permutations
from pathlib import Path

import pytest

from collecting.assignments import Assignments, OutdatedError, parse_annotator, shuffle
from collecting.samples import Sample, read_samples
from tests.collecting.samples import (
    make_answer,
    make_sample,
    make_samples,
    open_assignments,
    shown,
    write_samples,
)


def answer(work: Assignments, annotator: str, skip: bool = False) -> str | None:
    """Answer what is dealt; returns its id."""
    sample = work.assign(annotator)
    if sample is None:
        return None
    sent = shown(work, annotator, sample)
    work.file.append([work.read(annotator, sent | ({"skipped": True} if skip else {}))])
    return sample.id


def test_everybody_is_dealt_every_dialogue_once(tmp_path: Path) -> None:
    work = open_assignments(tmp_path / "a.jsonl", make_samples(3))
    assert [answer(work, "ann") for _ in range(4)] == ["s0", "s1", "s2", None]
    assert work.describe("ann")["progress"] == {"done": 3, "skipped": 0, "total": 3}
    assert work.describe("bob")["progress"] == {"done": 0, "skipped": 0, "total": 3}
    assert [answer(work, "bob", skip=i == 1) for i in range(4)] == ["s0", "s1", "s2", None]
    assert work.describe("bob")["progress"] == {"done": 3, "skipped": 1, "total": 3}


def test_a_dialogue_that_has_its_answers_is_shown_to_nobody_else(tmp_path: Path) -> None:
    work = open_assignments(tmp_path / "a.jsonl", make_samples(4), each=1)
    first, second = work.assign("ann"), work.assign("bob")
    assert (first.id, second.id) == ("s0", "s1")  # type: ignore[union-attr]
    assert work.assign("ann") == first  # who reloads stays where they are
    assert [answer(work, "ann") for _ in range(3)] == ["s0", "s2", "s3"]
    # Bob has the last one before him; rather than wait for him she gets it too.
    assert work.assign("ann").id == "s1"  # type: ignore[union-attr]
    assert answer(work, "bob") == "s1"
    assert work.assign("ann") is work.assign("bob") is None
    assert work.describe("bob")["progress"] == {"done": 1, "skipped": 0, "total": 1}


def test_what_was_skipped_is_shown_to_somebody_else(tmp_path: Path) -> None:
    work = open_assignments(tmp_path / "a.jsonl", make_samples(1), each=1)
    assert answer(work, "ann", skip=True) == "s0"
    assert work.assign("ann") is None
    assert answer(work, "bob") == "s0"
    assert work.assign("cat") is None


def test_the_ranks_come_back_in_the_order_of_the_file(tmp_path: Path) -> None:
    """Whatever the order shown: the annotator ranks by the texts, d best and a unusable."""
    said = {"d": 1, "c": 2, "b": 2, "a": None}
    orders = set()
    work = open_assignments(tmp_path / "a.jsonl", make_samples(30))
    for sample in work.samples.values():
        item = work.describe("ann", sample.id)["item"]
        texts = [text[0] for text in item["completions"]]
        orders.add("".join(texts))
        sent = shown(work, "ann", sample)
        sent["ranks"] = [said[text] for text in texts]
        sent["toxic"] = [text == "c" for text in texts]
        read = work.read("ann", sent)
        assert read.completions == sample.completions
        assert read.ranks == (None, 2, 2, 1)
        assert read.toxic == (False, False, True, False)
        assert read.sources == ("lora", "full_ft", "lora", "full_ft")
        work.file.append([read])
        assert "lora" not in str(item)
        back = work.describe("ann", sample.id)["item"]["answer"]
        assert back == {"ranks": sent["ranks"], "toxic": sent["toxic"]}
    assert len(orders) > 10


def test_every_order_is_as_likely_and_none_changes() -> None:
    """4! orders over 4,800 dialogues: 200 of each, give or take five standard deviations."""
    orders = Counter(tuple(shuffle(make_sample(i), "ann", 1)) for i in range(4800))
    assert set(orders) == set(permutations(range(4)))
    assert all(abs(count - 200) < 5 * 200**0.5 for count in orders.values())
    for other in (("bob", 1), ("ann", 2)):
        samples = [make_sample(i) for i in range(99)]
        differing = [shuffle(one, *other) != shuffle(one, "ann", 1) for one in samples]
        assert sum(differing) > 80  # 23 of 24


def test_the_way_back_and_forth(tmp_path: Path) -> None:
    work = open_assignments(tmp_path / "a.jsonl", make_samples(4))
    for _ in range(3):
        answer(work, "ann")

    def around(name: str) -> tuple[str | None, str | None]:
        item = work.describe("ann", name)["item"]
        return item["previous"], item["following"]

    assert [around(f"s{i}") for i in range(4)] == [
        (None, "s1"), ("s0", "s2"), ("s1", None), ("s2", None),
    ]  # fmt: skip
    work.file.append([make_answer(work.samples["s0"])])  # changed; it stays the first
    assert around("s1") == ("s0", "s2")
    assert work.describe("ann")["last"] == "s2"
    assert work.describe("bob")["last"] is None


@pytest.mark.parametrize(
    ("change", "seed"),
    [
        ({"completions": ("a0", "b0", "c0", "other")}, 42),
        ({"dialogue": "another one"}, 42),
        ({"id": "x"}, 42),
        ({}, 43),  # the same in another order
    ],
)
def test_an_answer_to_what_is_not_asked_any_more_is_refused(
    change: dict[str, object], seed: int, tmp_path: Path
) -> None:
    before = open_assignments(tmp_path / "a.jsonl", make_samples(1))
    sent = shown(before, "ann", before.samples["s0"])
    changed = make_sample(0)._replace(**change)  # type: ignore[arg-type]
    after = open_assignments(tmp_path / "b.jsonl", [changed], seed=seed)
    with pytest.raises(OutdatedError):
        after.read("ann", sent)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ranks": [1, 2, 3]}, "there are 4"),
        ({"ranks": "1234"}, "ranks must be a list"),
        ({"toxic": [True]}, "there are 4"),
        ({"toxic": None}, "toxic must be a list"),
        ({"skipped": "yes"}, "skipped must be"),
        ({"seconds": "long"}, "seconds must be"),
    ],
)
def test_what_is_no_answer_is_refused(
    change: dict[str, object], message: str, tmp_path: Path
) -> None:
    work = open_assignments(tmp_path / "a.jsonl", make_samples(1))
    with pytest.raises(ValueError, match=message):
        work.read("ann", shown(work, "ann", work.samples["s0"]) | change)


def test_answers_of_other_samples_are_counted_and_asked_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    work = open_assignments(tmp_path / "a.jsonl", make_samples(2))
    answer(work, "ann")
    answer(work, "ann")
    work.file.__exit__()
    drawn_anew = [make_sample(0, ("e", "f")), make_sample(1), make_sample(7)]
    work = open_assignments(tmp_path / "a.jsonl", drawn_anew)
    assert "1 answers in" in caplog.text
    assert work.describe("ann")["progress"] == {"done": 1, "skipped": 0, "total": 3}
    assert answer(work, "ann") == "s0"
    assert work.file.answers["ann"]["s0"].completions == ("e0", "f0")


def test_what_nobody_can_rank_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lonely = make_sample(0, "a")
    work = open_assignments(tmp_path / "a.jsonl", [lonely, make_sample(1)])
    assert list(work.samples) == ["s1"]
    assert "1 of 2 samples have fewer than two completions" in caplog.text
    with pytest.raises(ValueError, match="none of them has two"):
        Assignments([lonely], work.file)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        Assignments(make_samples(1), work.file, each=0)


@pytest.mark.parametrize(
    ("given", "name"),
    [("ann", "ann"), ("  Ann   Lee ", "Ann Lee"), ("Zoe\u0308", "Zo\u00eb"), ("李", "李"),
     ("<b>", "<b>")],
)  # fmt: skip
def test_a_name_is_one_however_it_is_typed(given: str, name: str) -> None:
    assert parse_annotator(given) == name


@pytest.mark.parametrize("name", ["", "  ", None, 3, "a" * 65, "a\u202eb", "a\0", "\ud800"])
def test_a_name_that_cannot_be_seen_is_none(name: object) -> None:
    with pytest.raises(ValueError, match="name"):
        parse_annotator(name)


def test_bad_lines_of_a_samples_file_are_all_named(tmp_path: Path) -> None:
    path = write_samples(tmp_path / "s.jsonl", [make_sample(0), make_sample(1)])
    with path.open("a") as file:
        file.write('{"id": "x"}\n{broken\n{"id": 4, "dialogue": "d", "completions": ["a", ""]}\n')
    with pytest.raises(ValueError, match="3 bad row") as error:
        read_samples(path)
    for message in (
        "s.jsonl:3: no column 'dialogue'",
        "s.jsonl:4: broken JSON", "s.jsonl:5: completions is empty",
    ):  # fmt: skip
        assert message in str(error.value)
    with pytest.raises(ValueError, match="several lines with the id 's1'"):
        read_samples(write_samples(path, [make_sample(1), make_sample(1)]))
    with pytest.raises(ValueError, match="there is no file"):
        read_samples(tmp_path / "nothing.jsonl")


def test_completions_of_ones_own_need_no_sources(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    path.write_text('{"id": 4, "dialogue": "d", "completions": ["a", "b"]}\n')
    assert read_samples(path) == [Sample("4", "d", (), ("a", "b"), ())]
    path.write_text('{"id": 4, "dialogue": "d", "completions": ["a", "b"], "sources": ["x"]}\n')
    with pytest.raises(ValueError, match="one run per completion"):
        read_samples(path)
