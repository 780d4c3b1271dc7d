"""What is read of people's answers, and how the rest is named."""

import csv
import json
import logging
import random
from pathlib import Path
from typing import Any

import pytest

from datamodules.consensus import RankingReader
from datamodules.rankings import group_by_dialogue, keep_latest, read_answers
from datamodules.reading import DataError
from datamodules.sources import find_problems
from datamodules.splits import split_by_hash
from tests.rows import write_rows

GOOD = {"id": "1", "dialogue": "x", "completions": ["a", "b"], "ranks": [1, 2]}


def answer(name: str = "1", *ranks: int | None, **more: Any) -> dict[str, Any]:
    ranks = ranks or (1, 2)
    texts = list("abcdef"[: len(ranks)])
    row = {"id": name, "dialogue": f"dialogue {name}", "completions": texts, "ranks": list(ranks)}
    return row | more


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_csv(path: Path, *rows: dict[str, Any]) -> Path:
    """As a spreadsheet or csv.DictWriter has it: lists as JSON, nothing where there is nothing."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        for row in rows:
            cells = (row.get(name, "") for name in names)
            writer.writerow([json.dumps(c) if isinstance(c, list) else c for c in cells])
    return path


def test_jsonl_and_csv_read_alike(tmp_path: Path) -> None:
    rows = [
        answer("1", 2, 1, annotator="ann", toxic=[True, False]),
        answer("2", 1, 1, None),
        answer("3", 1, 2, annotator="bob", skipped=True),
        {"prompt": "Is it, or not?\nWell.", "chosen": 'It "is".', "rejected": "No"},
    ]
    one = read_answers(write(tmp_path / "a.jsonl", *rows))
    assert not one.problems
    first, second, third, pair = one.answers
    assert (first.id, first.dialogue, first.completions) == ("1", "dialogue 1", ("a", "b"))
    assert (first.ranks, first.annotator, first.toxic) == ((2, 1), "ann", (True, False))
    assert second.ranks == (1, 1, None) and second.annotator is None
    assert third.ranks is None
    assert (pair.dialogue, pair.completions) == ("Is it, or not?\nWell.", ('It "is".', "No"))
    assert pair.ranks == (1, 2)
    rankings = write_csv(tmp_path / "a.csv", *rows[:3])
    pairs = write_csv(tmp_path / "b.csv", rows[3])
    found = [*read_answers(rankings).answers, *read_answers(pairs).answers]
    assert found == one.answers
    assert [each.place.split(":")[1] for each in found[:3]] == ["2", "3", "4"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ranks": None}, "ranks must be a list"),
        ({"ranks": [1]}, "ranks must be 2, one per completion; there are 1"),
        ({"ranks": [1, 0]}, "from 1, or null; got 0"),
        ({"ranks": [1, True]}, "from 1, or null; got True"),
        ({"ranks": [1, 1.5]}, "from 1, or null; got 1.5"),
        ({"ranks": "1, 2"}, "ranks must be a list written as JSON"),
        ({"completions": []}, "completions must be a list with at least"),
        ({"completions": ["a", " "]}, "completion 2 is empty"),
        ({"completions": ["a", 3]}, "completion 2 is int, not text"),
        ({"completions": ["a", "a"]}, "completion 2 is there already, with another rank"),
        ({"completions": ["a", "\udcff"]}, "completion 2 is not UTF-8"),
        ({"dialogue": ""}, "dialogue is empty"),
        ({"skipped": "perhaps"}, "skipped must be true or false, got 'perhaps'"),
        ({"chosen": "a", "prompt": "x"}, "no column 'rejected'"),
        ({"chosen": "a", "rejected": "a", "prompt": "x"}, "the same text"),
        ({"chosen": "a", "rejected": ["b"], "prompt": "x"}, "rejected is list, not text"),
    ],
)
def test_a_line_that_is_no_answer_is_named(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    file = tmp_path / "answers.jsonl"
    lines = [json.dumps(row).replace("\\udcff", "\xff") for row in (GOOD, GOOD | change)]
    file.write_bytes("\n".join(lines).encode("latin-1"))
    reading = read_answers(file)
    assert len(reading.answers) == 1
    (problem,) = reading.problems
    assert problem.startswith(f"{file}:2: ") and message in problem


def test_all_bad_lines_of_all_files_come_in_one_message(tmp_path: Path) -> None:
    bad = GOOD | {"ranks": [1]}
    write_rows(tmp_path, train=[GOOD, bad, bad], validation=[bad, GOOD], test=[bad])
    with pytest.raises(DataError, match="3 bad row") as error:
        RankingReader(str(tmp_path)).read(("train", "validation"))
    for place in ("train.jsonl:2:", "train.jsonl:3:", "validation.jsonl:1:"):
        assert place in str(error.value)
    assert "test.jsonl" not in str(error.value)
    found = RankingReader(str(tmp_path), on_bad_row="skip").read(("train", "validation"))
    assert {len(split.rankings) for split in found.values()} == {1}
    assert found["train"].description["bad_rows"] == 3


def test_an_id_with_two_dialogues_is_bad_wherever_it_stands(tmp_path: Path) -> None:
    other = GOOD | {"dialogue": "y"}
    groups, problems = group_by_dialogue(
        read_answers(write(tmp_path / "a.jsonl", GOOD, answer("2"), other)).answers
    )
    assert list(groups) == ["2"]
    assert [problem.split(": ")[0][-2:] for problem in problems] == [":1", ":3"]


def test_a_dialogue_is_one_whatever_its_ids_and_white_space(tmp_path: Path) -> None:
    rows = [GOOD | {"id": "z", "dialogue": "a  b\nc"}, GOOD | {"id": "k", "dialogue": "a b c "}]
    pair = {"prompt": "a b c", "chosen": "c", "rejected": "d"}
    groups, problems = group_by_dialogue(
        read_answers(write(tmp_path / "a.jsonl", *rows, pair)).answers
    )
    assert not problems
    (((_, group)),) = groups.items()
    assert len(group) == 3


def test_an_annotators_last_answer_on_the_same_texts_counts(tmp_path: Path) -> None:
    rows = [
        answer("1", 1, 2, annotator="ann"),
        answer("1", 1, 2),
        answer("1", 1, 2),
        answer("1", 2, 1, annotator="bob"),
        answer("1", 1, 2, 3, annotator="ann"),
        answer("1", 2, 1, annotator="ann", completions=["b", "a"]),
        answer("1", 2, 1, annotator="ann"),
    ]
    kept = keep_latest(read_answers(write(tmp_path / "a.jsonl", *rows)).answers)
    assert sorted(int(each.place.rsplit(":", 1)[1]) for each in kept) == [2, 3, 4, 5, 7]


def test_skipped_and_undecided_answers_are_counted_and_passed_over(tmp_path: Path) -> None:
    rows = [
        answer("1"),
        answer("2", 1, 2, skipped=True),
        answer("3", 1, 1),
        answer("4", None, None),
        answer("5", None, 1),
        answer("6", 1, annotator="ann"),
    ]
    write(tmp_path / "train.jsonl", *rows)
    found = RankingReader(str(tmp_path)).read(("train",))["train"]
    assert [ranking.id for ranking in found.rankings] == ["1"]
    assert found.description == {
        "rankings": 1, "pairs": 1, "answers": 4, "annotators": 1, "skipped": 2, "replaced": 0,
        "without_pairs": 3, "bad_rows": 0, "agreement": None,
    }  # fmt: skip


def test_a_split_without_a_pair_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", answer("3", 1, 1))
    with pytest.raises(DataError, match=r"no train dialogue with two completions.*without_pairs"):
        RankingReader(str(tmp_path)).read(("train",))


def test_a_missing_split_is_named_with_the_way_out(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", answer())
    with pytest.raises(
        DataError, match=r"no validation split \(it has train\).*the file itself as data.source"
    ):
        RankingReader(str(tmp_path)).read(("train", "validation"))


def test_a_dialogue_in_two_splits_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_rows(tmp_path, train=[answer("1"), answer("2")], validation=[answer("2"), answer("3")])
    with caplog.at_level(logging.WARNING):
        RankingReader(str(tmp_path)).read(("train", "validation"))
    assert "1 dialogue(s) are in both the train and the validation split" in caplog.text


# A single file -----------------------------------------------------------------------------------


def make_file(path: Path, dialogues: int = 200) -> list[dict[str, Any]]:
    """Three answers a dialogue under two ids, and a pair."""
    rows = []
    for number in range(dialogues):
        rows += [answer(str(number), 1, 2, 3), answer(str(number), 3, 2, 1, annotator="x")]
        rows.append(answer(f"again {number}", 1, 2, 3, dialogue=f"dialogue  {number}"))
        rows.append({"prompt": f"dialogue {number}", "chosen": "b", "rejected": "a"})
    write(path, *rows)
    return rows


def read_all(path: Path, **settings: Any) -> dict[str, list[str]]:
    found = RankingReader(str(path), **settings).read(("train", "validation", "test"))
    return {split: [ranking.dialogue for ranking in found[split].rankings] for split in found}


def test_a_single_file_is_split_by_dialogue(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    rows = make_file(file)
    found = read_all(file, holdout=0.2)
    sizes = {split: len(dialogues) for split, dialogues in found.items()}
    assert sum(sizes.values()) == 200  # each once, whatever its ids
    assert 100 < sizes["train"] < 140 and 25 < sizes["validation"] < 55
    evened = [{" ".join(each.split()) for each in dialogues} for dialogues in found.values()]
    assert not evened[0] & evened[1] and not evened[0] & evened[2] and not evened[1] & evened[2]
    random.Random(1).shuffle(rows)
    write(file, *rows)
    assert read_all(file, holdout=0.2) == found


def test_a_dialogue_keeps_its_split_when_the_file_grows() -> None:
    few, many = (split_by_hash(map(str, range(n)), 0.2) for n in (300, 3000))
    assert all(many[name] == split for name, split in few.items())
    assert 0.17 < sum(split == "test" for split in many.values()) / 3000 < 0.23


@pytest.mark.parametrize("count", [3, 4, 7])
def test_a_small_file_has_something_for_every_split(count: int) -> None:
    for first in range(30):
        shares = list(split_by_hash(map(str, range(first, first + count)), 0.05).values())
        assert {"train", "validation", "test"} == set(shares)


def test_settings_out_of_range_are_refused_together() -> None:
    with pytest.raises(ValueError, match=r"consensus must be one of.*holdout must be"):
        RankingReader("mini", consensus="mode", holdout=0.95)  # type: ignore[arg-type]


def test_what_is_no_source_is_refused_before_it_is_read(tmp_path: Path) -> None:
    assert find_problems("mini", "rankings") == []
    assert "there is no file or folder" in find_problems(str(tmp_path / "nothing"), "rankings")[0]
    (tmp_path / "answers.txt").write_text("")
    (problem,) = find_problems(str(tmp_path / "answers.txt"), "rankings")
    assert "neither a folder nor a .jsonl" in problem
    assert "no split file" in find_problems(str(tmp_path), "rankings")[0]
    assert find_problems(str(write(tmp_path / "train.jsonl", answer())), "rankings") == []
    assert find_problems(str(tmp_path), "rankings") == []
