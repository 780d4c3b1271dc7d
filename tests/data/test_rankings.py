"""Files of rankings and pairs: what is read, and how bad lines are reported."""

import csv
import json
import random
from pathlib import Path
from typing import Any

import pytest

from datamodules.consensus import RankingReader
from datamodules.rankings import group_by_dialogue, keep_latest, read_answers
from datamodules.reading import DataError, Split
from datamodules.sources import find_problems
from datamodules.splits import split_by_hash
from tests.rows import write_rows

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
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
    first, second, third, pair = one
    assert (first.id, first.dialogue, first.completions) == ("1", "dialogue 1", ("a", "b"))
    assert (first.ranks, first.annotator, first.toxic) == ((2, 1), "ann", (True, False))
    assert second.ranks == (1, 1, None) and second.annotator is None
    assert third.ranks is None
    assert (pair.dialogue, pair.completions) == ("Is it, or not?\nWell.", ('It "is".', "No"))
    assert pair.ranks == (1, 2)
    rankings = write_csv(tmp_path / "a.csv", *rows[:3])
    pairs = write_csv(tmp_path / "b.csv", rows[3])
    assert [*read_answers(rankings), *read_answers(pairs)] == one


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ranks": None}, "ranks must be a list"),
        ({"ranks": [1]}, "ranks must be 2, one per completion, got 1"),
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
    with pytest.raises(DataError) as caught:
        read_answers(file)
    assert "1 bad row" in str(caught.value) and f"{file}:2: " in str(caught.value)
    assert message in str(caught.value)


def test_bad_lines_stop_the_reader_or_are_skipped(tmp_path: Path) -> None:
    bad = GOOD | {"ranks": [1]}
    write_rows(tmp_path, train=[GOOD, bad, bad], validation=[GOOD], test=[bad])
    with pytest.raises(DataError, match="2 bad row") as error:
        RankingReader(str(tmp_path)).read_rankings("train")
    for part in ("train.jsonl:2:", "train.jsonl:3:", "--data.on_bad_row skip", '"chosen":'):
        assert part in str(error.value)
    found = RankingReader(str(tmp_path), on_bad_row="skip").read("train")
    assert len(found) == 1


def test_an_id_may_be_used_for_two_dialogues(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", GOOD, answer("2"), GOOD | {"dialogue": "y"})
    groups = group_by_dialogue(read_answers(file))
    assert [[each.dialogue for each in group] for group in groups] == [["x"], ["y"], ["dialogue 2"]]


def test_a_dialogue_is_one_whatever_its_ids_and_white_space(tmp_path: Path) -> None:
    rows = [GOOD | {"id": "z", "dialogue": "a  b\nc"}, GOOD | {"id": "k", "dialogue": "a b c "}]
    pair = {"prompt": "a b c", "chosen": "c", "rejected": "d"}
    file = write(tmp_path / "a.jsonl", *rows, pair)
    (group,) = group_by_dialogue(read_answers(file))
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
    kept = keep_latest(read_answers(write(tmp_path / "a.jsonl", *rows)))
    expected = [read_answers(write(tmp_path / "b.jsonl", rows[i]))[0] for i in (6, 1, 2, 3, 4)]
    assert kept == expected


def test_skipped_and_undecided_answers_are_counted_and_passed_over(tmp_path: Path) -> None:
    rows = [
        answer("1"),
        answer("2", 1, 2, skipped=True),
        answer("3", 1, 1),
        answer("4", None, None),
        answer("5", None, 1),
        answer("6", 1, annotator="ann"),
    ]
    write_rows(tmp_path, train=rows, validation=rows)
    rankings, description = RankingReader(str(tmp_path)).read_rankings("train")
    assert [ranking.id for ranking in rankings] == ["1"]
    assert description == {
        "rankings": 1, "pairs": 1, "answers": 4, "annotators": 1, "skipped": 2, "same_order": None
    }  # fmt: skip


def test_a_split_without_a_pair_is_refused(tmp_path: Path) -> None:
    write_rows(tmp_path, train=[answer("3", 1, 1)], validation=[answer("3")])
    with pytest.raises(DataError, match="no train dialogue with two completions"):
        RankingReader(str(tmp_path)).read_rankings("train")


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


def read_all(path: Path) -> dict[str, list[str]]:
    reader = RankingReader(str(path))
    return {split: [each.dialogue for each in reader.read(split)] for split in SPLITS}


def test_a_single_file_is_split_by_dialogue(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    rows = make_file(file)
    found = read_all(file)
    one, two, three = ({" ".join(each.split()) for each in found[split]} for split in SPLITS)
    assert not one & two and not one & three and not two & three
    assert len(one | two | three) == 200 and 140 < len(one) < 180 and 8 < len(two) < 32
    random.Random(1).shuffle(rows)
    write(file, *rows)
    again = read_all(file)
    assert {split: sorted(again[split]) for split in SPLITS} == {
        split: sorted(found[split]) for split in SPLITS
    }


def test_a_dialogue_keeps_its_split_when_the_file_grows() -> None:
    few, many = (split_by_hash(map(str, range(n))) for n in (300, 3000))
    assert all(many[name] == split for name, split in few.items())
    assert 0.08 < sum(split == "test" for split in many.values()) / 3000 < 0.12


@pytest.mark.parametrize("count", [3, 4, 7])
def test_a_small_file_has_something_for_every_split(count: int) -> None:
    for first in range(30):
        shares = list(split_by_hash(map(str, range(first, first + count))).values())
        assert {"train", "validation", "test"} == set(shares)


def test_what_is_no_source_is_refused_before_it_is_read(tmp_path: Path) -> None:
    assert find_problems("mini", "rankings") == []
    assert "there is no file or folder" in find_problems(str(tmp_path / "nothing"), "rankings")[0]
    (tmp_path / "answers.txt").write_text("")
    (problem,) = find_problems(str(tmp_path / "answers.txt"), "rankings")
    assert "neither a folder nor a .jsonl" in problem
    assert "no split file" in find_problems(str(tmp_path), "rankings")[0]
    assert find_problems(str(write(tmp_path / "train.jsonl", answer())), "rankings") == []
    assert find_problems(str(tmp_path), "rankings") == []
