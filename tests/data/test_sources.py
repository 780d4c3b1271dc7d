import csv
import json
import logging
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from common import hub
from datamodules.reading import ColumnNames, DataError, Row, group, with_unique_ids
from datamodules.sources import find_problems, open_source
from datamodules.splits import DialogueReader
from metrics.faithfulness import find_unknown_speakers
from metrics.mini import share_polite
from metrics.names import find_unknown_names

GOOD = {"id": "a", "dialogue": "#Person1#: Hi.\n#Person2#: Hello.", "summary": "They greet."}


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def reader(folder: Path, on_bad_row: Any = "stop", **settings: Any) -> DialogueReader:
    return DialogueReader(str(folder), on_bad_row=on_bad_row, **settings)


# Forms ------------------------------------------------------------------------------------------


def test_one_line_per_reference_in_csv_becomes_one_row(tmp_path: Path) -> None:
    rows = [
        {"id": f"test_{d}_{r}", "dialogue": f'A: {d}\nB: x, "y"', "summary": f"s{d}{r}"}
        for d in (1, 11)
        for r in (1, 2, 3)
    ]  # fmt: skip
    write_csv(tmp_path / "test.csv", rows)
    assert reader(tmp_path).read("test") == [
        Row("test_1", 'A: 1\nB: x, "y"', ("s11", "s12", "s13")),
        Row("test_11", 'A: 11\nB: x, "y"', ("s111", "s112", "s113")),
    ]


def test_numbered_summaries_are_references_in_their_order(tmp_path: Path) -> None:
    row = {"fname": "test_0", "dialogue": "A: 1", "topic1": "t"}
    row |= {f"summary{k}": f"s{k}" for k in (10, 2, 1)}
    write_jsonl(tmp_path / "dialogsum.test.jsonl", [row])
    assert reader(tmp_path).read("test") == [Row("test_0", "A: 1", ("s1", "s2", "s10"))]


def test_train_lines_with_the_same_dialogue_stay_apart(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", [GOOD, GOOD, {**GOOD, "id": "a#2"}])
    write_jsonl(tmp_path / "val.jsonl", [GOOD])
    ids = [row.id for row in reader(tmp_path).read("train")]
    assert len(ids) == len(set(ids)) == 3
    assert (ids[0], ids[2]) == ("a", "a#2")


def test_other_column_names(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "test.jsonl", [{"key": 7, "chat": "A: hi", "gist": "Greeting."}])
    columns = ColumnNames(id="key", dialogue="chat", summary="gist")
    assert reader(tmp_path, columns=columns).read("test") == [Row("7", "A: hi", ("Greeting.",))]


def test_a_missing_id_becomes_the_row_number(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "test.jsonl", [{"dialogue": d, "summary": "s"} for d in ("x", "y")])
    assert [row.id for row in reader(tmp_path).read("test")] == ["test_0", "test_1"]


def test_group_takes_the_first_id_where_there_is_no_stem() -> None:
    rows = [Row("x", "d", ("1",)), Row("z", "e", ("2",)), Row("y", "d", ("3",))]
    assert group(rows) == [Row("x", "d", ("1", "3")), Row("z", "e", ("2",))]


def test_repeated_ids_are_made_unique() -> None:
    rows = [Row(name, "d", ("s",)) for name in ("a", "a", "a#2", "a")]
    assert [row.id for row in with_unique_ids(rows)] == ["a", "a#3", "a#2", "a#4"]


@pytest.mark.parametrize("name", ["dev", "val", "validation"])
def test_names_of_the_validation_split(tmp_path: Path, name: str) -> None:
    write_jsonl(tmp_path / f"my-{name}.jsonl", [GOOD])
    assert set(open_source(str(tmp_path)).splits) == {"validation"}


def test_the_miniature_has_all_splits_and_three_references() -> None:
    rows = DialogueReader("mini").read("test")
    assert {len(row.references) for row in rows} == {3}


def test_the_challenge_is_a_test_split_of_neutral_references_to_rude_dialogues() -> None:
    # Whatever the columns of other data are called.
    rows = DialogueReader("challenge", ColumnNames(summary="gist")).read("test")
    assert find_problems("challenge") == []
    assert 40 <= len(rows) <= 60
    assert len({row.id for row in rows}) == len({row.dialogue for row in rows}) == len(rows)
    assert all(row.id.startswith("challenge_") for row in rows)
    for row in rows:
        assert len(set(row.references)) == 3
        lines = row.dialogue.split("\n")
        assert lines[0].startswith("#Person1#: ")
        assert all(re.match(r"#Person[12]#: \S", line) for line in lines)
        assert all(one[:9] != two[:9] for one, two in pairwise(lines))
        for text in row.references:
            assert find_unknown_names(text, row.dialogue) == []
            assert find_unknown_speakers(text, row.dialogue) == []
    texts = [text for row in rows for text in row.references]
    assert set(share_polite(texts, texts, texts)) == {1.0}
    dialogues = [row.dialogue for row in rows]
    rude = [share < 1 for share in share_polite(dialogues, dialogues, dialogues)]
    assert sum(rude) > 0.6 * len(rows)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_nothing_is_trained_on_the_challenge(split: Any) -> None:
    with pytest.raises(DataError, match=r"challenge has no train or validation split .*has test"):
        DialogueReader("challenge").read(split)


# Hold-out ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("there", ["dev", "train"])
def test_a_missing_split_is_held_out(
    tmp_path: Path, there: str, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{**GOOD, "id": f"r{i}", "dialogue": f"A: {i // 2}"} for i in range(400)]
    write_jsonl(tmp_path / f"{there}.jsonl", rows)
    splits = reader(tmp_path)
    with caplog.at_level(logging.WARNING):
        train, held = splits.read("train"), splits.read("validation")
    assert len(caplog.records) == 1
    assert f"{len(train) // 2} for train, {len(held)} for validation" in caplog.text
    assert len(train) + 2 * len(held) == 400 and 8 < len(held) < 32
    assert {len(row.references) for row in held} == {2}
    assert not {row.dialogue for row in train} & {row.dialogue for row in held}
    assert reader(tmp_path).read("validation") == held


def test_a_file_that_is_not_needed_may_be_broken_or_missing(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "test.jsonl", [GOOD])
    (tmp_path / "train.jsonl").write_text("{broken")
    assert len(reader(tmp_path).read("test")) == 1


# Bad input --------------------------------------------------------------------------------------

LINE = json.dumps(GOOD).encode()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"id": "b", "summary": "s"}', r"no column 'dialogue' \(it has id, summary\)"),
        (b'{"id": "b", "dialogue": "d"}', "no column 'summary'"),
        (b'{"dialogue": "  \\n", "summary": "s"}', "dialogue is empty"),
        (b'{"dialogue": "d", "summary": ""}', "summary is empty"),
        (b'{"dialogue": "d", "summary1": "s", "summary2": " "}', "summary2 is empty"),
        (b'{"dialogue": 3, "summary": "s"}', "dialogue is int, not text"),
        (b'{"dialogue": "d", "summary": null}', "summary is NoneType, not text"),
        (b'{"dialogue": "d", "summ', "broken JSON"),
        (b"[1, 2]", "not a JSON object"),
        (b'{"dialogue": "caf\xe9", "summary": "s"}', r"dialogue is not UTF-8 \(character 3\)"),
        (b'{"dialogue": "\\ud800", "summary": "s"}', "dialogue is not UTF-8"),
    ],
)
def test_a_bad_json_line_is_named(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "test.jsonl"
    path.write_bytes(LINE + b"\n\n" + line + b"\n")
    with pytest.raises(DataError, match=rf"1 bad row[^$]*test.jsonl:3: {message}") as caught:
        reader(tmp_path).read("test")
    assert "--data.on_bad_row skip" in str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"b,,s", "dialogue is empty"),
        (b"b,only two", "2 cells where the header has 3"),
        (b"b,d,s,more", "4 cells where the header has 3"),
        (b"b,caf\xe9,s", r"dialogue is not UTF-8 \(character 3\)"),
        (b'b,"never closed,s', "broken CSV"),
    ],
)
def test_a_bad_csv_record_is_named_by_the_line_it_begins_on(
    tmp_path: Path, line: bytes, message: str
) -> None:
    path = tmp_path / "test.csv"
    path.write_bytes(b'id,dialogue,summary\r\na,"A: 1\nB: 2\nC: 3",s\r\n' + line + b"\r\n")
    with pytest.raises(DataError, match=f"test.csv:5: {message}"):
        reader(tmp_path).read("test")


def test_all_problems_are_counted_and_three_are_shown(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "test.jsonl", [{"dialogue": "d", "summary": " "}] * 13)
    with pytest.raises(DataError) as caught:
        reader(tmp_path).read("test")
    message = str(caught.value)
    assert "13 bad row(s)" in message
    assert message.count("test.jsonl:") == 3
    assert "and 10 more" in message


@pytest.mark.parametrize("on_bad_row", ["stop", "skip"])
@pytest.mark.parametrize("write", [write_jsonl, write_csv])
def test_a_column_that_is_missing_everywhere_is_reported_once(
    tmp_path: Path, write: Any, on_bad_row: str
) -> None:
    path = tmp_path / ("test.csv" if write is write_csv else "test.jsonl")
    write(path, [{"id": i, "conversation": "d", "summary": "s"} for i in range(60)])
    with pytest.raises(DataError) as caught:
        reader(tmp_path, on_bad_row).read("test")
    assert str(caught.value) == (
        f"data: {path} has no column 'dialogue' (it has id, conversation, summary); name your "
        "column with --data.columns.dialogue NAME"
    )
    with pytest.raises(DataError, match=r"dialogue NAME and --data.columns.summary NAME"):
        reader(tmp_path, columns=ColumnNames(dialogue="chat", summary="gist")).read("test")
    columns = ColumnNames(dialogue="conversation", summary="tldr")
    with pytest.raises(DataError, match=r"no column 'tldr' .*--data.columns.summary NAME"):
        reader(tmp_path, on_bad_row, columns=columns).read("test")


def test_a_single_file_is_split_by_dialogue(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{**GOOD, "id": f"r{i}", "dialogue": f"A: {i // 2}"} for i in range(200)]
    write_csv(path := tmp_path / "all.csv", rows)
    splits = reader(path)
    with caplog.at_level(logging.WARNING):
        train, val, test = (splits.read(split) for split in ("train", "validation", "test"))
    assert len(caplog.records) == 1 and "all.csv has no separate files" in caplog.text
    dialogues = [{row.dialogue for row in part} for part in (train, val, test)]
    assert sum(map(len, dialogues)) == len(set.union(*dialogues)) == 100
    assert len(train) == 2 * len(dialogues[0]) and {len(row.references) for row in val} == {2}
    assert 4 < len(val) < 20 and 4 < len(test) < 20
    assert reader(path).read("test") == test
    assert find_problems(str(path)) == []
    assert "no file or folder" in find_problems("nowhere.csv")[0]
    write_jsonl(few := tmp_path / "few.jsonl", rows[:4])
    with pytest.raises(DataError, match=r"has 2 different row\(s\), too few"):
        reader(few).read("train")


def test_skip_leaves_bad_rows_out_and_counts_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "test.jsonl").write_bytes(b"{\n" + LINE + b"\n")
    with caplog.at_level(logging.WARNING):
        assert len(reader(tmp_path, "skip").read("test")) == 1
    assert "Skipped 1 bad row(s)" in caplog.text


@pytest.mark.parametrize("content", [b"", b"\n\n", b"{\n"])
def test_an_empty_split_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "test.jsonl").write_bytes(content)
    with pytest.raises(DataError, match="has no usable row"):
        reader(tmp_path, "skip").read("test")


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    (tmp_path / "test.csv").write_bytes(b"\xef\xbb\xbfid,dialogue,summary\na,d,s\n")
    assert reader(tmp_path).read("test") == [Row("a", "d", ("s",))]


# What can be had --------------------------------------------------------------------------------


def test_find_problems_in_folders(tmp_path: Path) -> None:
    (notes := tmp_path / "notes").mkdir()
    (notes / "contest.jsonl").write_text("")  # 'test' is no word of its own here
    assert "no split file (looked for {train," in find_problems(str(notes))[0]
    assert "there is no file or folder" in find_problems(str(tmp_path / "nowhere"))[0]
    write_jsonl(notes / "dialogsum.test.jsonl", [GOOD])
    assert find_problems(str(notes)) == []
    write_csv(notes / "test.csv", [GOOD])
    assert "two files for test, dialogsum.test.jsonl and test.csv" in find_problems(str(notes))[0]
    assert find_problems("mini") == []


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(hub, "reachable", lambda: False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    return tmp_path


def test_a_data_set_that_is_nowhere(offline: Path) -> None:
    (problem,) = find_problems("knkarthick/dialogsum")
    assert "'knkarthick/dialogsum' is not in the local hub cache" in problem
    with pytest.raises(DataError, match=r"knkarthick/dialogsum.*--config configs/overlays/mini"):
        open_source("knkarthick/dialogsum")


def test_a_hub_cache_laid_out_by_hand_is_read(offline: Path) -> None:
    repo = offline / "hub" / "datasets--knkarthick--dialogsum"
    snapshot = repo / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0" * 40)
    write_csv(snapshot / "test.csv", [{**GOOD, "id": f"test_0_{k}"} for k in (1, 2, 3)])
    assert find_problems("knkarthick/dialogsum") == []
    (row,) = reader(Path("knkarthick/dialogsum")).read("test")
    assert (row.id, len(row.references)) == ("test_0", 3)


def test_hub_rows_are_checked_like_lines(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datamodules.sources.find_hub_problems", lambda name: [])
    monkeypatch.setattr(
        "datasets.load_dataset", lambda path: {"test": [GOOD, {**GOOD, "summary": None}]}
    )
    with pytest.raises(DataError, match="some/set/test:2: summary is NoneType"):
        reader(Path("some/set")).read("test")


@pytest.mark.parametrize(
    ("source", "arguments"),
    [
        ("some/set", {"path": "some/set"}),
        ("abisee/cnn:3.0.0", {"path": "abisee/cnn", "name": "3.0.0"}),
        ("some/set@refs/convert/parquet", {"path": "some/set", "revision": "refs/convert/parquet"}),
        ("set@v1:small", {"path": "set", "revision": "v1", "name": "small"}),
    ],
)
def test_a_hub_id_names_a_revision_and_a_configuration(
    offline: Path, monkeypatch: pytest.MonkeyPatch, source: str, arguments: dict[str, str]
) -> None:
    (problem,) = find_problems(source)
    assert f"{source!r} is not in the local hub cache" in problem
    given: list[dict[str, str]] = []

    def load(**settings: str) -> dict[str, Any]:
        given.append(settings)
        return {"test": [GOOD]}

    monkeypatch.setattr("datamodules.sources.find_hub_problems", lambda name: [])
    monkeypatch.setattr("datasets.load_dataset", load)
    assert len(DialogueReader(source).read("test")) == 1
    assert given == [arguments]
