"""Completions that differ, as many as requested, and the same ones after an interruption."""

import json
import logging
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from alignsum.commands import rank
from collecting import sampling
from collecting.samples import read_samples
from datamodules.reading import Row
from lightning_modules import exported_run
from tests.collecting.samples import read_lines
from tests.rows import write_rows

ROWS = [Row(f"r{number}", f"#Person1#: {number}", (f"It is {number}.",)) for number in range(7)]


class Fake:
    """Returns what a function makes of a row's id, the seed and the position in the call."""

    def __init__(self, make: Callable[[str, Sequence[int], int], str]) -> None:
        self.make = make
        self.asked: list[list[str]] = []

    def __call__(self, rows: Sequence[Row], key: Sequence[int]) -> list[str]:
        self.asked.append([row.id for row in rows])
        return [self.make(row.id, key, place) for place, row in enumerate(rows)]


def draw(fakes: dict[str, Any], completions: int) -> list[Any]:
    return sampling.sample_window(fakes, ROWS, (42, 0), completions)


def test_the_runs_take_turns() -> None:
    """Of four completions by three runs, each run in turn gives the extra one."""

    def make_fake(name: str) -> Fake:
        return Fake(lambda row, key, place: f"{name} {row} {place}")

    fakes = {name: make_fake(name) for name in ("x", "y", "z")}
    samples = draw(fakes, 4)
    counts = [{name: row["sources"].count(name) for name in fakes} for row in samples]
    assert counts[:3] == [
        {"x": 2, "y": 1, "z": 1}, {"x": 1, "y": 2, "z": 1}, {"x": 1, "y": 1, "z": 2},
    ]  # fmt: skip
    assert counts[3:6] == counts[:3]
    for row in samples:
        assert [text[0] for text in row["completions"]] == row["sources"]
    # It makes no difference where a window begins.
    later = sampling.sample_window(fakes, ROWS[2:], (42, 2), 4)
    assert [row["sources"] for row in later] == [row["sources"] for row in samples[2:]]


def test_duplicates_and_empty_texts_are_sampled_again() -> None:
    says = {"r0": ["a", " a\n", "a  a", "a a"], "r1": ["", "  "], "r2": ["b", "c", "d", "e"]}
    given = dict.fromkeys(says, -1)

    def make(row: str, key: Sequence[int], place: int) -> str:
        given[row] = given.get(row, -1) + 1
        texts = says.get(row, [f"{place} {key}"])
        return texts[given[row] % len(texts)]

    fake = Fake(make)
    samples = draw({"x": fake}, 3)
    assert [row["completions"] for row in samples[:3]] == [["a", "a  a"], [], ["b", "c", "d"]]
    # First three of each row, then what is missing.
    assert len(fake.asked[0]) == 21
    assert len(fake.asked) == sampling.ATTEMPTS
    assert all({"r0", "r1"} <= {*asked} for asked in fake.asked[1:])
    assert "r2" not in fake.asked[1]


# With a model ----------------------------------------------------------------------------------


@pytest.fixture
def dialogues(tmp_path: Path) -> Path:
    rows = [{"id": row.id, "dialogue": row.dialogue, "summary": row.references[0]} for row in ROWS]
    rows[6]["dialogue"] = rows[0]["dialogue"]  # a second reference of the first
    return write_rows(tmp_path / "data", train=rows) / "train.jsonl"


@pytest.fixture(scope="module")
def lora(t5: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run that was tested with short texts and beams."""
    root = tmp_path_factory.mktemp("runs") / "lora"
    shutil.copytree(t5, root / "export")
    config = {"model": {"init_args": {"decoding": {"max_new_tokens": 6, "num_beams": 4}}}}
    (root / "config.yaml").write_text(json.dumps(config))
    return str(root)


@pytest.fixture
def base(lora: str, dialogues: Path) -> list[str]:
    return [
        "sample", lora, "--input", str(dialogues), "--completions", "3", "--batch_size", "2",
        "--device", "cpu",
    ]  # fmt: skip


def run(base: list[str], output: Path, *more: str) -> bytes:
    assert rank.main([*base, "--output", str(output), *more]) == 0
    return output.read_bytes()


def test_a_file_of_samples(base: list[str], tmp_path: Path) -> None:
    output = tmp_path / "s.jsonl"
    run(base, output)
    samples = read_samples(output)
    assert [sample.id for sample in samples] == [f"r{number}" for number in range(6)]
    assert samples[0].references == ("It is 0.", "It is 6.")
    assert samples[1].dialogue == "#Person1#: 1"
    for sample in samples:
        assert len(set(sample.completions)) == 3
        assert sample.sources == ("lora",) * 3


def test_the_seed_decides_and_nothing_else(base: list[str], tmp_path: Path) -> None:
    content = run(base, tmp_path / "s.jsonl")
    assert run(base, tmp_path / "again.jsonl") == content
    other = run(base, tmp_path / "other.jsonl", "--seed", "7")
    texts = [
        [json.loads(line)["completions"] for line in file.splitlines()] for file in (content, other)
    ]
    assert all(mine != its for mine, its in zip(*texts, strict=True))


@pytest.mark.parametrize("lines", [0, 1, 2, 5])
def test_an_interrupted_command_continues_with_the_same_texts(
    lines: int, base: list[str], tmp_path: Path
) -> None:
    output = tmp_path / "s.jsonl"
    content = run(base, output)
    rows = content.splitlines(keepends=True)
    output.write_bytes(b"".join(rows[:lines]) + rows[lines][:20])
    assert run(base, output) == content


def test_a_complete_file_is_left_alone_and_other_settings_are_refused(
    base: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    content = run(base, tmp_path / "s.jsonl")
    monkeypatch.setattr(exported_run, "load_generator", None)  # not even the model is loaded
    with caplog.at_level(logging.INFO):
        assert run(base, tmp_path / "s.jsonl") == content
    assert "6 dialogues with 18 completions are in" in caplog.text
    for change, message in (
        (["--completions", "4"], "completions was 3 and is 4"),
        (["--seed", "1"], "seed was 42 and is 1"),
        (["--temperature", "2"], "temperature was 1.0 and is 2.0"),
        (["--max_rows", "3"], "input was"),
    ):
        assert rank.main([*base, "--output", str(tmp_path / "s.jsonl"), *change]) == 2
        assert message in caplog.text
    assert (tmp_path / "s.jsonl").read_bytes() == content
    monkeypatch.undo()
    other = run(base, tmp_path / "s.jsonl", "--seed", "1", "--overwrite", "true")
    assert other != content


def test_too_few_different_completions_are_reported(
    base: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(base, tmp_path / "s.jsonl", "--top_k", "1")
    assert all(len(row["completions"]) <= 1 for row in read_lines(tmp_path / "s.jsonl"))
    assert "6 of them have fewer than 3 different completions, and 6 fewer" in caplog.text


def test_two_runs_take_turns(t5: str, base: list[str], tmp_path: Path) -> None:
    run([*base[:2], t5, *base[2:]], tmp_path / "s.jsonl")
    rows = read_lines(tmp_path / "s.jsonl")
    assert [row["sources"].count("lora") for row in rows] == [2, 1, 2, 1, 2, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--completions", "1"], "completions must be at least 2"),
        (["--output", "{folder}"], "is a folder"),
        (["--input", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--input", "{folder}/data", "--split", "test"], "has no test split"),
        (["--temperature", "0"], "temperature must be"),
        (["--device", "cuda:9"], "device: 'cuda:9'"),
        (["{lora}"], "a run is named twice"),
        (["./nothing"], "there is no folder"),
    ],
)
def test_what_cannot_work_changes_nothing(
    change: list[str], message: str, base: list[str], lora: str, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    change = [part.format(folder=tmp_path, lora=lora) for part in change]
    command = [*base, "--output", str(tmp_path / "s.jsonl")]
    if len(change) == 1:  # one more run
        command[2:2] = change
    else:
        command += change
    assert rank.main(command) == 2
    assert re.search(message, caplog.text)
    assert [file.name for file in tmp_path.iterdir()] == ["data"]


def test_any_source_is_read(base: list[str], dialogues: Path, tmp_path: Path) -> None:
    for source, more in (("mini", ["--split", "test"]), (str(tmp_path / "data"), [])):
        output = tmp_path / f"{Path(source).name}.jsonl"
        run([*base, "--input", source, "--max_rows", "2", "--completions", "2", *more], output)
        first, second = read_samples(output)
        assert len(first.references) == (3 if source == "mini" else 2)
        assert first.id != second.id
    dialogues.write_text('{"dialogue": "#Person1#: Hello."}\n{"dialogue": "#Person1#: Bye."}\n')
    run(base, tmp_path / "s.jsonl")
    assert [(each.id, each.references) for each in read_samples(tmp_path / "s.jsonl")] == [
        ("0", ()), ("1", ()),
    ]  # fmt: skip
