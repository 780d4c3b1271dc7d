import json
import re
from pathlib import Path
from typing import Any

import pytest

import report
from metrics.rouge import KEYS

PREDICTIONS = ["the cat sat", "a dog"]
REFERENCES = ["the cat sat on the mat", "a dog"]
# rouge1 by hand: 2/3 and 1; rouge2: 4/7 and 1.
ROUGE1, ROUGE2 = (2 / 3 + 1) / 2, (4 / 7 + 1) / 2


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    elif path.suffix == ".csv":
        lines = [",".join(rows[0])] + [
            ",".join(f'"{cell}"' for cell in row.values()) for row in rows
        ]
        path.write_text("\n".join(lines) + "\n")
    else:
        path.write_text("".join(next(iter(row.values())) + "\n" for row in rows))
    return path


def run(tmp_path: Path, predictions: Path, references: Path, *more: str) -> Any:
    out = tmp_path / "scores.json"
    files = ["--predictions", str(predictions), "--references", str(references)]
    assert report.main(["score", *files, "--out", str(out), *more]) == 0
    return json.loads(out.read_text())


@pytest.mark.parametrize("ending", ["txt", "jsonl", "csv"])
@pytest.mark.parametrize("other", ["txt", "jsonl", "csv"])
def test_formats_give_the_same_scores(tmp_path: Path, ending: str, other: str) -> None:
    predictions = write(tmp_path / f"p.{ending}", [{"p": text} for text in PREDICTIONS])
    references = write(tmp_path / f"r.{other}", [{"r": text} for text in REFERENCES])
    scores = run(tmp_path, predictions, references)
    (name,) = scores
    assert name == ("prediction" if ending == "txt" else "p")
    assert set(scores[name]) == set(KEYS)
    assert scores[name]["rouge1"]["value"] == pytest.approx(ROUGE1)
    assert scores[name]["rouge2"]["value"] == pytest.approx(ROUGE2)
    assert scores[name]["rouge1"]["n"] == 2
    assert (scores[name]["rouge1"]["low"], scores[name]["rouge1"]["high"]) == pytest.approx(
        (2 / 3, 1)
    )


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_one_file_several_columns(tmp_path: Path, ending: str) -> None:
    rows = [
        {"a": prediction, "b": reference, "r1": reference, "r2": "nothing"}
        for prediction, reference in zip(PREDICTIONS, REFERENCES, strict=True)
    ]
    path = write(tmp_path / f"all.{ending}", rows)
    columns = ["--prediction_columns", "a,b", "--reference_columns", "r1, r2"]
    scores = run(tmp_path, path, path, *columns)
    assert list(scores) == ["a", "b"]
    assert scores["a"]["rouge1"]["value"] == pytest.approx(ROUGE1 / 2)
    assert scores["a"]["rouge1_best"]["value"] == pytest.approx(ROUGE1)
    assert scores["b"]["rougeLsum"]["value"] == 0.5
    assert scores["b"]["rougeLsum_best"]["value"] == 1


def test_list_of_references_as_a_run_writes_them(tmp_path: Path) -> None:
    rows = [{"id": "1", "prediction": "a dog", "references": ["a dog", "nothing"], "rouge1": 0.5}]
    path = write(tmp_path / "predictions.jsonl", rows)
    columns = ["--prediction_columns", "prediction", "--reference_columns", "references"]
    scores = run(tmp_path, path, path, *columns)["prediction"]
    assert (scores["rouge1"]["value"], scores["rouge1_best"]["value"]) == (0.5, 1)


def test_stemmer_setting(tmp_path: Path) -> None:
    predictions = write(tmp_path / "p.txt", [{"p": "running cats"}])
    references = write(tmp_path / "r.txt", [{"r": "run cat"}])
    assert run(tmp_path, predictions, references)["prediction"]["rouge1"]["value"] == 1
    scores = run(tmp_path, predictions, references, "--stemmer", "false")
    assert scores["prediction"]["rouge1"]["value"] == 0


def test_empty_line_is_an_empty_text(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a\n\nb")
    (tmp_path / "r.txt").write_text("a\nx\nb\n")
    scores = run(tmp_path, tmp_path / "p.txt", tmp_path / "r.txt")["prediction"]
    assert (scores["rouge1"]["n"], scores["rouge1"]["value"]) == (3, pytest.approx(2 / 3))


def test_separators_inside_texts_do_not_split_rows(tmp_path: Path) -> None:
    for ending in ("jsonl", "csv", "txt"):
        path = write(tmp_path / f"u.{ending}", [{"p": "a\u2028b"}, {"p": "c"}])
        scores = run(tmp_path, path, path)
        assert next(iter(scores.values()))["rouge1"] == {"value": 1, "n": 2, "low": 1, "high": 1}


@pytest.mark.parametrize(
    ("name", "content", "columns", "message"),
    [
        ("p.txt", b"one\n", "", "p.txt has 1 rows and .*r.txt has 2"),
        ("p.txt", b"", "", "p.txt is empty"),
        ("p.txt", b"one\ntw\xe9\n", "", "p.txt, line 2 is not UTF-8"),
        ("p.txt", b"one\ntwo\n", "x", "has no columns"),
        ("p.jsonl", b'{"a": "x"}\n{"a"\n', "a", "p.jsonl, line 2 is not JSON"),
        ("p.jsonl", b'["x"]\n', "a", "line 1 is not a JSON object"),
        ("p.jsonl", b'{"a": "x", "b": "y"}\n' * 2, "", r"several columns \(a, b\)"),
        ("p.jsonl", b'{"a": "x", "b": "y"}\n' * 2, "c", "no column c; it has a, b"),
        ("p.jsonl", b'{"a": ["x", "y"]}\n' * 2, "a", "column a holds lists"),
        ("p.jsonl", b'{"a": "x"}\n{"a": null}\n', "a", "no column a"),
        ("p.csv", b"a,b\n1,2\n3\n", "a", "p.csv, line 3 does not have as many cells"),
        ("p.csv", b"a,b\n", "a", "empty but for its column names"),
        ("p.csv", b'a,b\n"1"x,2\n', "a", "p.csv, after line 1: not csv"),
        ("none.csv", None, "a", "cannot read .*none.csv: No such file"),
    ],
)
def test_bad_input_is_named(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    name: str,
    content: bytes | None,
    columns: str,
    message: str,
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    (tmp_path / "r.txt").write_text("one\ntwo\n")
    out = tmp_path / "scores.json"
    files = ["--predictions", str(tmp_path / name), "--references", str(tmp_path / "r.txt")]
    code = report.main(["score", *files, "--out", str(out), "--prediction_columns", columns])
    assert code == 2
    assert not out.exists()

    assert re.search(message, caplog.text), caplog.text
