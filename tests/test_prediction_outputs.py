"""The file of summaries: gone on with after any interruption, never mixed, never lost."""

import json
from pathlib import Path
from typing import Any

import pytest

from datamodules.reading import Row
from prediction.outputs import SummaryFile

SETTINGS = {"model": "m", "num_beams": 1}


def lines(*ids: str) -> list[dict[str, Any]]:
    return [{"id": name, "prediction": f"Zusammenfassung für {name}\n"} for name in ids]


def rows(*ids: str) -> list[Row]:
    return [Row(name, "x", ()) for name in ids]


def write(path: Path, *ids: str, **settings: Any) -> None:
    with SummaryFile(path, SETTINGS | settings, {}) as output:
        output.append(lines(*ids))


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_are_appended_over_several_runs(tmp_path: Path) -> None:
    path = tmp_path / "new" / "s.jsonl"
    write(path, "a", "b")
    output = SummaryFile(path, SETTINGS, {})
    assert output.rows == 2
    output.check(rows("a", "b", "c"))
    with output:
        output.append(lines("c"))
        assert output.rows == 3
    assert read(path) == lines("a", "b", "c")


@pytest.mark.parametrize("half", [b"{", b'{"id": "c", "predic', b"\0\0\0\n"])
def test_a_half_line_is_cut_off(
    half: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "s.jsonl"
    write(path, "a", "b")
    with path.open("ab") as file:
        file.write(half)
    output = SummaryFile(path, SETTINGS, {})
    assert output.rows == 2
    assert path.read_bytes().endswith(half)  # only looked at so far
    with output:
        assert "written by half" in caplog.text
        output.append(lines("c"))
    assert read(path) == lines("a", "b", "c")


def test_a_whole_line_without_its_end_is_a_half_line(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    write(path, "a", "b")
    path.write_bytes(path.read_bytes()[:-1])
    with SummaryFile(path, SETTINGS, {}) as output:
        assert output.rows == 1


def refuse(path: Path, message: str, **settings: Any) -> None:
    before = {file: file.read_bytes() for file in path.parent.iterdir()}
    with pytest.raises(ValueError, match=message) as error:
        SummaryFile(path, SETTINGS | settings, {})
    assert "--overwrite true" in str(error.value)
    assert {file: file.read_bytes() for file in path.parent.iterdir()} == before


def test_other_peoples_files_are_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    write(path, "a")
    refuse(path, "num_beams was 1 and is 4", num_beams=4)
    refuse(path, "top_k was None and is 3", top_k=3)
    with path.open("ab") as file:
        file.write(b"broken\n" + json.dumps(lines("b")[0]).encode() + b"\n")
    refuse(path, r"s\.jsonl:2 is no line with id and prediction")
    # Whole, and therefore not what a kill leaves: somebody put it there.
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0] + b'{"id": "b"}\n')
    refuse(path, r"s\.jsonl:2 is no line with id and prediction")
    sidecar = tmp_path / "s.jsonl.settings.json"
    sidecar.write_text("[]")
    refuse(path, "is broken")
    sidecar.unlink()
    refuse(path, "no s.jsonl.settings.json that says what made it")


def test_overwriting_happens_when_the_work_begins(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    write(path, "a")
    output = SummaryFile(path, {"other": 1}, {}, overwrite=True)
    assert output.rows == 0
    assert read(path) == lines("a")
    with output:
        output.append(lines("b"))
    assert read(path) == lines("b")
    assert SummaryFile(path, {"other": 1}, {}).rows == 1


def test_lines_that_are_gone_leave_the_way_free(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    write(path, "a")
    path.unlink()
    assert SummaryFile(path, {"other": 1}, {}).rows == 0


@pytest.mark.parametrize(
    ("ids", "message"),
    [("acb", r"s\.jsonl:2 is of row 'b', the input has 'c'"), ("a", "the input has no more rows")],
)
def test_lines_are_held_against_the_input(ids: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    write(path, "a", "b")
    with pytest.raises(ValueError, match=message):
        SummaryFile(path, SETTINGS, {}).check(rows(*ids))


def test_two_writers_at_once_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    with SummaryFile(path, SETTINGS, {}) as first:
        first.append(lines("a"))
        with pytest.raises(ValueError, match="by another process"):
            SummaryFile(path, SETTINGS, {}).__enter__()
        with pytest.raises(ValueError, match="by another process"):
            SummaryFile(path, SETTINGS, {}, overwrite=True).__enter__()
        first.append(lines("b"))
    assert read(path) == lines("a", "b")
