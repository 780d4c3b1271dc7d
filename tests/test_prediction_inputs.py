"""Files of dialogues in every form, read lazily, with what is wrong named by file and line."""

import itertools
import json
import tracemalloc
from pathlib import Path

import pytest

from datamodules.reading import ColumnNames, DataError, Row
from prediction.inputs import DialogueFile, Format

ROWS = [Row("a", "#Person1#: Hi.\n#Person2#: Bye.", ()), Row("b", 'One, "two"', ())]


def write(path: Path, text: str | bytes) -> str:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def read(name: str, form: Format = "auto", **settings: str) -> list[Row]:
    columns = ColumnNames(**{k: settings.pop(k) for k in ("id", "dialogue") if k in settings})
    return list(DialogueFile(name, form, columns, **settings).read())  # type: ignore[arg-type]


def test_jsonl_and_csv_give_the_same_rows(tmp_path: Path) -> None:
    lines = [json.dumps({"id": row.id, "x": 1, "dialogue": row.dialogue}) for row in ROWS]
    assert read(write(tmp_path / "d.jsonl", "\n".join(lines))) == ROWS
    csv = 'id,dialogue\na,"#Person1#: Hi.\n#Person2#: Bye."\nb,"One, ""two"""\n'
    assert read(write(tmp_path / "d.csv", csv)) == ROWS
    assert read(write(tmp_path / "d.data", csv), "csv") == ROWS


def test_columns_of_other_names_and_rows_without_id(tmp_path: Path) -> None:
    path = write(tmp_path / "d.csv", "key,chat\n7,one\n,two\n")
    assert read(path, id="key", dialogue="chat") == [Row("7", "one", ()), Row("1", "two", ())]
    path = write(tmp_path / "d.jsonl", '{"fname": "f", "dialogue": "x"}\n\n{"dialogue": "y"}')
    assert read(path) == [Row("f", "x", ()), Row("1", "y", ())]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_text_is_dialogues_between_blank_lines(tmp_path: Path, newline: str) -> None:
    text = "\n\n#Person1#: Hi.\n#Person2#: Bye.\n\n  \n\nOne line.\n#Person1#: \\n stays."
    path = write(tmp_path / "d.txt", "\ufeff" + text.replace("\n", newline))
    assert read(path) == [
        Row("0", "#Person1#: Hi.\n#Person2#: Bye.", ()),
        Row("1", "One line.\n#Person1#: \\n stays.", ()),
    ]


def test_lines_are_dialogues_with_their_breaks_written_out(tmp_path: Path) -> None:
    path = write(tmp_path / "d.txt", "#Person1#: Hi.\\n#Person2#: Bye.\nOne.\u2028Still one.\n")
    assert [row.dialogue for row in read(path, "lines")] == [
        "#Person1#: Hi.\n#Person2#: Bye.", "One.\u2028Still one.",
    ]  # fmt: skip
    # An empty line is an empty dialogue: to leave it out would shift all that follow.
    path = write(tmp_path / "e.txt", "one\n\nthree\n")
    with pytest.raises(DataError, match=r"e\.txt:2: dialogue is empty"):
        read(path, "lines")
    rows = read(path, "lines", on_bad_row="skip")
    assert [(row.id, row.dialogue) for row in rows] == [("0", "one"), ("2", "three")]


BAD = b'{"dialogue": "good"}\n{"dialogue"\n[1]\n{"text": "x"}\n{"dialogue": " "}\n{"dialogue": 3}\n'
BAD += b'{"dialogue": "\xff"}\n{"id": "\\ud800", "dialogue": "x"}\n{"id": 9, "dialogue": "good"}\n'


def test_a_scan_names_every_bad_row(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    name = write(tmp_path / "d.jsonl", BAD)
    with pytest.raises(DataError, match=r"7 bad row\(s\)") as error:
        DialogueFile(name).scan()
    said = str(error.value)
    for number, what in (
        (2, "broken JSON"), (3, "not a JSON object"), (4, "no column 'dialogue' (it has text)"),
        (5, "dialogue is empty"), (6, "dialogue is int"), (7, "dialogue is not UTF-8"),
        (8, "the id is not UTF-8"),
    ):  # fmt: skip
        assert f"{name}:{number}: {what}" in said
    assert "--on_bad_row skip" in said
    skipping = DialogueFile(name, on_bad_row="skip")
    assert skipping.scan().rows == 2
    assert "7 bad row(s)" in caplog.text
    # Numbered as they stand in the file.
    assert [row.id for row in skipping.read()] == ["0", "9"]


def test_the_hash_is_of_ids_and_dialogues_only(tmp_path: Path) -> None:
    jsonl = write(
        tmp_path / "d.jsonl", '{"id": "a", "dialogue": "x"}\n{"id": "b", "dialogue": "y"}'
    )
    csv = write(tmp_path / "d.csv", "dialogue,id,more\nx,a,1\ny,b,2\n")
    other = write(tmp_path / "e.csv", "dialogue,id\ny,a\nx,b\n")
    assert DialogueFile(jsonl).scan() == DialogueFile(csv).scan()
    assert DialogueFile(jsonl).scan() != DialogueFile(other).scan()


def test_a_file_that_is_no_use_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no file"):
        DialogueFile(str(tmp_path / "none.jsonl"))
    with pytest.raises(DataError, match="there is no file"):
        DialogueFile(str(tmp_path))
    with pytest.raises(DataError, match="--format jsonl, csv, text or lines"):
        DialogueFile(write(tmp_path / "d.tsv", "x"))
    empty = DialogueFile(write(tmp_path / "d.txt", "\n \n"))
    for attempt in (empty.scan, lambda: list(empty.read())):
        with pytest.raises(DataError, match="has no dialogue"):
            attempt()


@pytest.mark.parametrize("form", ["jsonl", "csv", "text", "lines"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, form: Format) -> None:
    line = {"jsonl": '{"dialogue": "%s"}\n', "csv": "%s\n", "text": "%s\n\n", "lines": "%s\n"}[form]
    head = "dialogue\n" if form == "csv" else ""
    rows = (line % (f"row {i} " + "word " * 200) for i in range(2000))
    path = tmp_path / "d"
    with path.open("w") as file:
        file.writelines(itertools.chain([head], rows))
    assert path.stat().st_size > 2_000_000
    tracemalloc.start()
    source = DialogueFile(str(path), form)
    assert source.scan().rows == sum(1 for _ in source.read()) == 2000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300_000
