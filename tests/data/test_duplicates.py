"""The index finds what comparing everything with everything finds."""

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from alignsum.__main__ import main
from datamodules.duplicates import Dialogue, Pair, find_duplicates, find_similar_sets

DATA = Path(__file__).parents[3] / "shared" / "data"
DIALOGSUM = Path(os.environ.get("DIALOGSUM_DIR", DATA / "dialogsum"))


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.5, 0.55, 0.7, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_all_similar_sets_are_found(threshold: float, seed: int) -> None:
    draw = random.Random(seed)
    sets = [set(draw.sample(range(30), draw.randint(1, 20))) for _ in range(60)]
    sets += [{*each} ^ {draw.randrange(30)} or {0} for each in sets]
    wanted = {
        (min(i, j), max(i, j)): len(sets[i] & sets[j]) / len(sets[i] | sets[j])
        for i in range(len(sets))
        for j in range(i)
    }
    found = list(find_similar_sets(sets, threshold))
    assert {(min(i, j), max(i, j)): each for i, j, each in found} == {
        pair: each for pair, each in wanted.items() if each >= threshold
    }
    assert len(found) == len({frozenset(pair[:2]) for pair in found})


TEXTS = {
    ("train", "t0"): "A: Shall we meet at the station at noon today? B: Yes.",
    ("train", "t1"): "A: Something else entirely, about tea.",
    ("train", "t2"): "a shall we meet, at the station -- at noon today? b: yes",
    ("test", "e0"): "A: Shall we meet at the station at NOON  today?\nB: Yes.",
    ("test", "e1"): "A: Shall we meet at the station at noon today? B: Yes, all right.",
    ("test", "e2"): "A: Nothing like it.",
}


def dialogues() -> list[Dialogue]:
    return [Dialogue(split, name, text) for (split, name), text in TEXTS.items()]


def test_exact_and_near_duplicates_of_texts() -> None:
    found = find_duplicates(dialogues(), [("test", "train"), ("train", "train")], 0.6)
    assert sorted(found) == [
        Pair("test", "e0", "train", "t0", 1.0, True),
        Pair("test", "e1", "train", "t0", round(10 / 12, 4), False),
        Pair("train", "t2", "train", "t0", 1.0, True),
    ]
    assert [pair.id for pair in find_duplicates(dialogues(), [("test", "train")], 0.9)] == ["e0"]
    assert find_duplicates(dialogues(), [("validation", "train")], 0.6) == []


def write(folder: Path, column: str) -> str:
    folder.mkdir()
    for split in ("train", "test"):
        rows = [{"id": name, column: text} for (part, name), text in TEXTS.items() if part == split]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def rows_of(output: str) -> list[list[str]]:
    return [line.split() for line in output.splitlines() if line.strip()][2:-1]


def test_the_command_counts_dialogues_and_writes_pairs(tmp_path: Path, capsys: Any) -> None:
    chats, articles = write(tmp_path / "chats", "dialogue"), write(tmp_path / "news", "document")
    out = tmp_path / "pairs.jsonl"
    options = ["--threshold", "0.6", "--out", str(out)]
    assert main(["duplicates", chats, *options]) == 0
    assert rows_of(capsys.readouterr().out) == [
        ["test", "test", "0", "1", "3"],
        ["test", "train", "1", "1", "3"],
        ["train", "train", "1", "0", "3"],
    ]
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert {"split": "test", "id": "e0", "other_split": "train", "other_id": "t0",
            "similarity": 1.0, "exact": True} in lines  # fmt: skip
    assert len(lines) == 4
    assert main(["duplicates", chats, *options]) == 2  # the file is not replaced
    assert main(["duplicates", chats, "--threshold", "0"]) == 2
    capsys.readouterr()
    assert main(["duplicates", chats, articles, "--dialogue_column", "dialogue,document"]) == 0
    (row,) = [row for row in rows_of(capsys.readouterr().out) if row[1] == "test" != row[3]]
    assert row == ["source", "test", "other", "train", "1", "1", "3"]


@pytest.mark.slow
@pytest.mark.skipif(not DIALOGSUM.is_dir(), reason="no DialogSum; name it in DIALOGSUM_DIR")
def test_dialogsum_repeats_the_dialogues_that_are_known(capsys: Any) -> None:
    """4 of the 7 validation dialogues in test: the others are in the half that is missing here."""
    assert main(["duplicates", str(DIALOGSUM)]) == 0
    exact = {(row[0], row[1]): (row[2], row[-1]) for row in rows_of(capsys.readouterr().out)}
    assert exact["validation", "train"] == ("52", "500")
    assert exact["test", "train"] == ("1", "250")
    assert exact["validation", "test"] == ("4", "500")
    assert exact["train", "train"] == ("1,129", "12,460")
