"""The file of answers: nothing that was confirmed is lost, whatever happens, and nothing mixed."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from collecting.answer_file import AnswerFile, read_answers
from common import jsonl as json_lines
from datamodules import rankings
from datamodules.rankings import Answer, parse_answer
from tests.collecting.samples import make_answer, make_sample, make_samples, read_lines


def write(path: Path, *answers: Answer) -> None:
    with AnswerFile(path) as file:
        file.append(answers)


def test_a_line_says_all_that_was_answered(tmp_path: Path) -> None:
    sample = make_sample(0)
    write(tmp_path / "a.jsonl", make_answer(sample), make_answer(sample, "bob", ranks=None))
    ranked, skipped = read_lines(tmp_path / "a.jsonl")
    assert ranked == {
        "id": "s0", "dialogue": "#Person1#: number 0\n#Person2#: Yes.",
        "completions": ["a0", "b0", "c0", "d0"], "ranks": [1, 2, 2, None], "annotator": "ann",
        "toxic": [False, False, True, False], "sources": ["lora", "full_ft", "lora", "full_ft"],
        "time": "2025-01-02T03:04:05+00:00", "seconds": 7.5,
    }  # fmt: skip
    assert skipped["skipped"] is True
    assert "ranks" not in skipped
    assert [parse_answer(row).to_row() for row in (ranked, skipped)] == [ranked, skipped]


def test_the_last_answer_of_an_annotator_is_what_they_say(tmp_path: Path) -> None:
    first, second = make_samples(2)
    path = tmp_path / "a.jsonl"
    write(path, make_answer(first), make_answer(second), make_answer(first, "bob"))
    write(path, make_answer(first, ranks=(4, 3, 2, 1)))
    assert len(read_lines(path)) == 4  # nothing is ever changed or taken away
    with AnswerFile(path) as file:
        assert len(file) == 3
        assert file.answers["ann"]["s0"].ranks == (4, 3, 2, 1)
        assert list(file.answers["ann"]) == ["s0", "s1"]
    assert read_answers(path)[0].ranks == (4, 3, 2, 1)
    # A reward model and DPO read the same file the same way.
    first_ones = [answer for answer in rankings.read_answers(path) if answer.id == "s0"]
    kept = {answer.annotator: answer.ranks for answer in rankings.keep_latest(first_ones)}
    assert kept == {"ann": (4, 3, 2, 1), "bob": (1, 2, 2, None)}


def test_a_line_that_is_no_answer_is_named_and_the_file_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    row = make_answer(make_sample(0)).to_row()
    path.write_text(json.dumps(row | {"toxic": [True]}) + "\n" + json.dumps(row) + "\n")
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"a\.jsonl:1: .*toxic must be 4"):
        AnswerFile(path).__enter__()
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.jsonl"]


def test_cut_off_at_any_byte_no_earlier_answer_is_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_lines.os, "fsync", lambda _: None)  # hundreds of files
    path, torn = tmp_path / "a.jsonl", tmp_path / "a.jsonl.torn"
    first, second, third = make_samples(3)
    write(path, make_answer(first, "Zoë"), make_answer(second))
    kept = path.stat().st_size
    write(path, make_answer(third))
    whole = path.read_bytes()
    for end in range(kept, len(whole)):
        path.write_bytes(whole[:end])
        torn.unlink(missing_ok=True)
        caplog.clear()
        write(path, make_answer(first, "bob"))
        found = [(row["annotator"], row["id"]) for row in read_lines(path)]
        complete = end == len(whole) - 1  # all but its line break
        expected = [("Zoë", "s0"), ("ann", "s1"), *([("ann", "s2")] if complete else [])]
        assert found == [*expected, ("bob", "s0")]
        if kept < end < len(whole) - 1:
            assert torn.read_bytes() == whole[kept:end] + b"\n"
            assert "is now in a.jsonl.torn" in caplog.text
        else:
            assert not torn.exists()


@pytest.mark.parametrize("half", [b"\0\0\0\n", b'{"id": "s1", \0\0\0}\n', b"[]\n"])
def test_a_last_line_of_rubbish_is_set_aside(half: bytes, tmp_path: Path) -> None:
    """What a loss of power can leave of a line whose end reached the disk before its beginning."""
    path = tmp_path / "a.jsonl"
    write(path, make_answer(make_sample(0)))
    with path.open("ab") as file:
        file.write(half)
    write(path, make_answer(make_sample(2)))
    assert [row["id"] for row in read_lines(path)] == ["s0", "s2"]
    assert (tmp_path / "a.jsonl.torn").read_bytes() == half
    # Rubbish that anything stands behind was written by nobody here.
    path.write_bytes(half + path.read_bytes())
    with pytest.raises(ValueError, match=r"a\.jsonl:1: "):
        AnswerFile(path).__enter__()


class FullDisk:
    """A file on a disk that has room for some bytes only."""

    def __init__(self, file: Any, room: int) -> None:
        self.file, self.room = file, room
        self.name = file.name

    def fileno(self) -> int:
        return self.file.fileno()

    def write(self, data: memoryview) -> int:
        if self.room == 0:
            raise OSError(28, "No space left on device")
        written = self.file.write(data[: self.room])
        self.room -= written
        return written


def test_on_a_full_disk_the_file_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write(path, make_answer(make_sample(0)))
    before = path.read_bytes()
    with AnswerFile(path) as file:
        real = file.file
        file.file = FullDisk(real, 100)  # type: ignore[assignment]
        with pytest.raises(OSError, match=r"No space left.*a\.jsonl"):
            file.append([make_answer(make_sample(1))])
        assert path.read_bytes() == before
        assert "s1" not in file.answers["ann"]
        file.file = FullDisk(real, 10**6)  # type: ignore[assignment]
        file.append([make_answer(make_sample(2))])
        file.file = real
    assert [row["id"] for row in read_lines(path)] == ["s0", "s2"]


def test_a_file_that_was_replaced_is_not_written_to(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with AnswerFile(path) as file:
        file.append([make_answer(make_sample(0))])
        copy = tmp_path / "b.jsonl"
        copy.write_bytes(path.read_bytes())
        os.replace(copy, path)  # as an editor does
        with pytest.raises(OSError, match="was moved or replaced"):
            file.append([make_answer(make_sample(1))])
        path.unlink()
        with pytest.raises(OSError, match="was moved or replaced"):
            file.append([make_answer(make_sample(1))])
        assert len(file) == 1


def test_two_servers_never_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.jsonl"
    with AnswerFile(path), pytest.raises(ValueError, match="by another process"):
        AnswerFile(path).__enter__()
    write(path, make_answer(make_sample(0)))
    with pytest.raises(ValueError, match="is a folder"):
        AnswerFile(tmp_path).__enter__()
