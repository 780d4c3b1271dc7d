"""Completions that differ, as many as asked for, the same ones however often it broke off."""

import json
import logging
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from alignsum.commands import rank as feedback
from collecting import sample_command, sampling
from collecting.sampler import Sampler
from collecting.samples import read_samples
from datamodules.reading import Row
from tests.collecting.samples import read_lines
from tests.rows import write_rows

ROWS = [Row(f"r{number}", f"#Person1#: {number}", (f"It is {number}.",)) for number in range(7)]


class Fake:
    """Gives the texts that a function makes of a row's id, the turn and how often it was asked."""

    def __init__(self, make: Callable[[str, Sequence[int], int], str]) -> None:
        self.make = make
        self.asked: list[list[str]] = []

    def summarise(
        self, rows: Sequence[Row], window: int, advance: Callable[[int], None], turn: Sequence[int]
    ) -> list[str]:
        self.asked.append([row.id for row in rows])
        advance(len(rows))
        return [self.make(row.id, turn, place) for place, row in enumerate(rows)]


def draw(fakes: dict[str, Any], completions: int, retries: int = 0, **settings: Any) -> list[Any]:
    return Sampler(fakes, completions, retries).draw(ROWS, 0, 0, **settings)


def test_the_runs_take_turns() -> None:
    """Of four completions by three runs each run in turn gives the odd one."""
    fakes = {name: Fake(lambda *at: str(at)) for name in ("x", "y", "z")}
    # Texts that are alike count once, so each run needs texts of its own.
    for name, fake in fakes.items():
        fake.make = lambda row, turn, place, name=name: f"{name} {row} {place}"  # type: ignore[misc]
    samples = draw(fakes, 4)
    counts = [{name: row["sources"].count(name) for name in fakes} for row in samples]
    assert counts[:3] == [
        {"x": 2, "y": 1, "z": 1}, {"x": 1, "y": 2, "z": 1}, {"x": 1, "y": 1, "z": 2},
    ]  # fmt: skip
    assert counts[3:6] == counts[:3]
    for row in samples:
        starts = [text[0] for text in row["completions"]]
        assert starts == row["sources"]
    # Where a file is cut into windows makes no difference.
    later = Sampler(fakes, 4, 0).draw(ROWS[2:], 0, 2)  # type: ignore[arg-type]
    assert [row["sources"] for row in later] == [row["sources"] for row in samples[2:]]


def test_what_comes_twice_or_empty_is_drawn_again_a_few_times() -> None:
    says = {"r0": ["a", " a\n", "a  a", "a a"], "r1": ["", "  "], "r2": ["b", "c", "d", "e"]}
    given = dict.fromkeys(says, -1)

    def make(row: str, turn: Sequence[int], place: int) -> str:
        given[row] = given.get(row, -1) + 1
        texts = says.get(row, [f"{place} {turn}"])
        return texts[given[row] % len(texts)]

    fake = Fake(make)
    samples = draw({"x": fake}, 3, retries=2)
    assert [row["completions"] for row in samples[:3]] == [["a", "a  a"], [], ["b", "c", "d"]]
    # First three of each, then what is missing, and no more than twice.
    assert len(fake.asked[0]) == 21
    assert len(fake.asked) == 3
    assert {row for asked in fake.asked[1:] for row in asked} >= {"r0", "r1"}
    assert "r2" not in fake.asked[1]


def test_two_runs_that_say_the_same_are_asked_for_something_else() -> None:
    fakes = {
        "x": Fake(lambda row, turn, place: f"same {place % 2}"),
        "y": Fake(lambda row, turn, place: f"same {place % 2} {turn[1] or ''}"),
    }
    for row in draw(fakes, 4, retries=1):
        assert len({" ".join(text.split()) for text in row["completions"]}) == 4
        assert row["sources"] == ["x", "x", "y", "y"]


def test_progress_counts_what_was_asked_for_once() -> None:
    done: list[int] = []
    draw({"x": Fake(lambda *at: "always the same")}, 3, retries=2, advance=done.append)
    assert sum(done) == 3 * len(ROWS)


# With a model ----------------------------------------------------------------------------------


@pytest.fixture
def dialogues(tmp_path: Path) -> Path:
    rows = [{"id": row.id, "dialogue": row.dialogue, "summary": row.references[0]} for row in ROWS]
    rows[6]["dialogue"] = rows[0]["dialogue"]  # a second reference of the first
    return write_rows(tmp_path / "data", train=rows) / "train.jsonl"


@pytest.fixture
def base(t5: str, dialogues: Path) -> list[str]:
    return [
        "sample", t5, "--input", str(dialogues), "--completions", "3", "--batch_size", "2",
        "--window_batches", "1", "--max_new_tokens", "6", "--device", "cpu",
    ]  # fmt: skip


def run(base: list[str], output: Path, *more: str) -> bytes:
    assert feedback.main([*base, "--output", str(output), *more]) == 0
    return output.read_bytes()


def test_a_file_of_samples(base: list[str], t5: str, tmp_path: Path) -> None:
    output = tmp_path / "s.jsonl"
    run(base, output)
    samples = read_samples(output)
    assert [sample.id for sample in samples] == [f"r{number}" for number in range(6)]
    assert samples[0].references == ("It is 0.", "It is 6.")
    assert samples[1].dialogue == "#Person1#: 1"
    for sample in samples:
        assert len(set(sample.completions)) == 3
        assert sample.sources == (Path(t5).name,) * 3


def test_the_seed_decides_and_nothing_else(base: list[str], tmp_path: Path) -> None:
    whole = run(base, tmp_path / "s.jsonl")
    assert run(base, tmp_path / "again.jsonl") == whole
    other = run(base, tmp_path / "other.jsonl", "--seed", "7")
    texts = [[row["completions"] for row in map(json.loads, file.splitlines())]
             for file in (whole, other)]  # fmt: skip
    assert all(mine != its for mine, its in zip(*texts, strict=True))


@pytest.mark.parametrize("lines", [0, 1, 2, 3, 5])
def test_broken_off_anywhere_it_goes_on_as_if_nothing_had_been(
    lines: int, base: list[str], tmp_path: Path
) -> None:
    output = tmp_path / "s.jsonl"
    whole = run(base, output)
    content = whole.splitlines(keepends=True)
    output.write_bytes(b"".join(content[:lines]) + content[lines][:20])
    assert run(base, output) == whole


def test_what_is_complete_is_left_as_it_is(
    base: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    whole = run(base, tmp_path / "s.jsonl")
    monkeypatch.setattr(sampling, "load_exported", None)  # not even the model is loaded
    with caplog.at_level(logging.INFO):
        assert run(base, tmp_path / "s.jsonl") == whole
    assert "s.jsonl is complete" in caplog.text
    assert "6 dialogues with 18 completions are in" in caplog.text
    for change, message in (
        (["--completions", "4"], "completions was 3 and is 4"),
        (["--seed", "1"], "seed was 42 and is 1"),
        (["--temperature", "2"], "temperature was 1.0 and is 2.0"),
        (["--max_rows", "3"], "input was"),
        (["--retries", "9"], "retries was 4 and is 9"),
    ):
        assert feedback.main([*base, "--output", str(tmp_path / "s.jsonl"), *change]) == 2
        assert message in caplog.text
    assert (tmp_path / "s.jsonl").read_bytes() == whole


def test_a_model_that_says_little_is_reported(
    base: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(base, tmp_path / "s.jsonl", "--top_k", "1", "--retries", "1")
    assert all(len(row["completions"]) <= 1 for row in read_lines(tmp_path / "s.jsonl"))
    assert re.search("6 of them have fewer than 3 different ones, 6 fewer than two", caplog.text)


def test_several_runs_each_with_its_own_settings(t5: str, base: list[str], tmp_path: Path) -> None:
    """One of two runs was tested with a prompt, lengths and beams of its own."""
    root = tmp_path / "lora"
    shutil.copytree(t5, root / "export")
    config = {
        "model": {"init_args": {"decoding": {"max_new_tokens": 3, "num_beams": 4}}},
        "data": {"init_args": {"prompt": {"class_path": "datamodules.Flan"}, "batch_size": 5}},
        "trainer": {"precision": "32-true"},
    }
    (root / "config.yaml").write_text(json.dumps(config))
    arguments = [str(root), t5, *base[2:6], "--batch_size", "3", "--output"]
    first, second = sample_command.parse([*arguments, "x"])
    assert (first.name, second.name) == ("lora", Path(t5).name)
    assert (first.decoding.max_new_tokens, second.decoding.max_new_tokens) == (3, 128)
    assert first.settings.prompt != second.settings.prompt
    assert (first.settings.batch_size, second.settings.batch_size) == (3, 3)  # as was given
    for run_ in (first, second):
        assert (run_.decoding.do_sample, run_.decoding.num_beams) == (True, 1)
    run(["sample", *arguments[:-1], "--max_new_tokens", "6"], tmp_path / "s.jsonl")
    rows = read_lines(tmp_path / "s.jsonl")
    assert [row["sources"].count("lora") for row in rows] == [2, 1, 2, 1, 2, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--completions", "1", "--retries", "-1"], "completions must be .*; retries must be"),
        (["--output", "-"], "output must be a file"),
        (["--output", "{folder}"], "is a folder"),
        (["--split", "test"], "is a file and has none"),
        (["--input", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--input", "{folder}/data", "--split", "test"], "has no test split"),
        (["--temperature", "0"], "temperature must be"),
    ],
)
def test_what_cannot_work_changes_nothing(
    change: list[str], message: str, base: list[str], tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    change = [part.format(folder=tmp_path) for part in change]
    assert feedback.main([*base, "--output", str(tmp_path / "s.jsonl"), *change]) == 2
    assert re.search(message, caplog.text)
    assert [file.name for file in tmp_path.iterdir()] == ["data"]


def test_runs_are_checked_before_any_is_loaded(
    base: list[str], t5: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for runs, message in (
        ([t5, t5], "a run is named twice"),
        ([t5, "./nothing"], "there is no folder"),
    ):
        command = ["sample", *runs, *base[2:], "--output", str(tmp_path / "s.jsonl")]
        assert feedback.main(command) == 2
        assert message in caplog.text
    assert not (tmp_path / "s.jsonl").exists()


def test_the_splits_of_a_source_are_read(base: list[str], tmp_path: Path) -> None:
    for source, more in (("mini", ["--split", "test"]), (str(tmp_path / "data"), [])):
        output = tmp_path / f"{Path(source).name}.jsonl"
        command = [*base, "--input", source, "--max_rows", "2", "--completions", "2", *more]
        run(command, output)
        first, second = read_samples(output)
        assert len(first.references) == (3 if source == "mini" else len(first.references))
        assert first.id != second.id
