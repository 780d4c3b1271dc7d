"""The `score` command: formats, pairing, columns, and the numbers in scores.json."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from alignsum.commands.score import main
from lightning_modules.reward_scorer import RewardScorer
from metrics.rouge_scores import KEYS

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
    assert main([*files, "--out", str(out), *more]) == 0
    return json.loads(out.read_text())


@pytest.mark.parametrize("ending", ["txt", "jsonl", "csv"])
@pytest.mark.parametrize("other", ["txt", "jsonl", "csv"])
def test_formats_give_the_same_scores(tmp_path: Path, ending: str, other: str) -> None:
    predictions = write(tmp_path / f"p.{ending}", [{"p": text} for text in PREDICTIONS])
    references = write(tmp_path / f"r.{other}", [{"r": text} for text in REFERENCES])
    scores = run(tmp_path, predictions, references)
    (name,) = scores
    assert name == ("prediction" if ending == "txt" else "p")
    assert set(scores[name]) == {*KEYS, "words", "length_ratio", "swapped_speakers"}
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


@pytest.mark.parametrize(
    ("flags", "value"), [([], 1), (["--stemmer", "true"], 1), (["--stemmer=false"], 0)]
)
def test_stemmer_setting(tmp_path: Path, flags: list[str], value: float) -> None:
    predictions = write(tmp_path / "p.txt", [{"p": "running cats"}])
    references = write(tmp_path / "r.txt", [{"r": "run cat"}])
    scores = run(tmp_path, predictions, references, *flags)
    assert scores["prediction"]["rouge1"]["value"] == value


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


# Choosing columns --------------------------------------------------------------------------------


def test_a_runs_predictions_need_no_columns(tmp_path: Path) -> None:
    rows = [
        {
            "id": "1", "dialogue": "#Person1#: A dog!", "references": ["a dog", "nothing"],
            "prediction": "a dog", "rouge1": 0.5, "unknown_names": ["Rex"],
        }
    ]  # fmt: skip
    path = write(tmp_path / "predictions.jsonl", rows)
    scores = run(tmp_path, path, path)
    assert list(scores) == ["prediction"]
    assert scores["prediction"]["rouge1"]["value"] == 0.5
    assert scores["prediction"]["novelty2"]["value"] == 0


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_dialogsum_with_three_summaries_a_row(tmp_path: Path, ending: str) -> None:
    row = {"fname": "test_0", "dialogue": "#Person1#: A dog!", "summary10": "nothing"}
    row |= {"topic1": "dog", "summary1": "a dog", "summary2": "a dog"}
    references = write(tmp_path / f"test.{ending}", [row])
    predictions = write(tmp_path / "p.jsonl", [{"id": "test_0", "text": "a dog"}])
    scores = run(tmp_path, predictions, references)["text"]
    assert scores["rouge1"]["value"] == pytest.approx(2 / 3)
    assert scores["rouge1_best"]["value"] == 1
    assert scores["novelty1"]["value"] == 0


def test_dialogsum_with_a_row_for_each_reference(tmp_path: Path) -> None:
    # The Hub's form; the lines of one dialogue need not be neighbors.
    rows = [
        {"id": f"test_{i}_{k}", "dialogue": f"#Person1#: {i}", "summary": text, "topic": "t"}
        for k, text in ((1, "a dog"), (2, "nothing"))
        for i in (0, 1)
    ]
    references = write(tmp_path / "test.csv", rows)
    by_id = [{"id": f"test_{i}", "prediction": text} for i, text in ((1, "a cat"), (0, "a dog"))]
    scores = run(tmp_path, write(tmp_path / "p.jsonl", by_id), references)["prediction"]
    # rouge1: (1/2 + 0) / 2 of "a cat", (1 + 0) / 2 of "a dog"
    assert scores["rouge1"] == {"value": 0.375, "n": 2, "low": 0.25, "high": 0.5}
    by_order = write(tmp_path / "p.txt", [{"p": "a dog"}, {"p": "a cat"}])
    assert run(tmp_path, by_order, references)["prediction"]["rouge1"]["value"] == 0.375
    # As many predictions as rows: each belongs to one row.
    each = write(tmp_path / "all.txt", [{"p": "a dog"}] * 4)
    scores = run(tmp_path, each, references)["prediction"]
    assert (scores["rouge1"]["n"], scores["rouge1"]["value"]) == (4, 0.5)
    assert "rouge1_best" not in scores


# Rows that belong together -----------------------------------------------------------------------


def test_rows_are_paired_by_id_and_rows_with_one_id_in_their_order(tmp_path: Path) -> None:
    rows = [{"id": "a", "t": "the cat"}, {"id": "b", "t": "x"}, {"id": "a", "t": "a dog"}]
    predictions = write(tmp_path / "p.jsonl", [rows[1], rows[0], rows[2]])
    references = write(tmp_path / "r.csv", rows)
    assert run(tmp_path, predictions, references)["t"]["rouge1"]["value"] == 1


@pytest.mark.parametrize(
    ("rows", "more", "message"),
    [
        ([{"id": "a", "p": "x"}, {"id": "c", "p": "x"}], [], "r.jsonl has no row with id 'c'"),
        ([{"id": "a", "p": "x"}], [], "p.jsonl has no row with id 'b'"),
        ([{"p": "x"}] * 3, [], "has 3 rows and .*r.jsonl has 2"),
        (
            [{"dialogue": "one", "p": "x"}, {"dialogue": "x", "p": "y"}], [],
            "p.jsonl, line 2: the dialogue differs from that of row 2",
        ),
        ([{"p": "x"}, {"p": "y"}], ["--reference_columns", "r,s"], "r.jsonl has no column s"),
        ([{"p": "x"}, {"p": "y"}], ["--toxicity", "./none"], "there is no folder './none'"),
        (
            [{"p": "x"}, {"p": "y"}], ["--toxicity", "mini", "--toxic_label", "kind"],
            "no label 'kind'",
        ),
    ],
)  # fmt: skip
def test_rows_that_do_not_correspond_are_refused(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    rows: list[dict[str, Any]],
    more: list[str],
    message: str,
) -> None:
    predictions = write(tmp_path / "p.jsonl", rows)
    references = write(
        tmp_path / "r.jsonl",
        [{"id": "a", "dialogue": "one", "r": "x"}, {"id": "b", "dialogue": "two", "r": "y"}],
    )
    out = tmp_path / "scores.json"
    files = ["--predictions", str(predictions), "--references", str(references)]
    assert main([*files, "--out", str(out), *more]) == 2
    assert re.search(message, caplog.text), caplog.text
    assert not out.exists()


def test_an_empty_reference_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    predictions = write(tmp_path / "p.txt", [{"p": "a"}, {"p": "b"}])
    (tmp_path / "r.txt").write_text("a\n \n")
    files = ["--predictions", str(predictions), "--references", str(tmp_path / "r.txt")]
    assert main([*files, "--out", str(tmp_path / "s.json")]) == 2
    assert "r.txt, line 2: a reference is empty" in caplog.text


def test_no_input_is_overwritten(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "p.jsonl", [{"p": "a"}])
    before = path.read_text()
    files = ["--predictions", str(path), "--references", str(path)]
    assert main([*files, "--out", str(tmp_path / "x" / ".." / "p.jsonl")]) == 2
    assert "would overwrite an input file" in caplog.text
    assert path.read_text() == before


# What is scored ----------------------------------------------------------------------------------

ROW = {
    "id": "7",
    "dialogue": "#Person1#: Karen has a red car.\n#Person2#: A fast car.",
    "good": "#Person1# says Karen has a car.",
    "bad": "#Person2# says Tom and #Person3# have a car.",
    "r": "#Person1# says Karen has a car.",
}
COLUMNS = ["--prediction_columns", "good,bad", "--reference_columns", "r"]


def test_everything_about_one_example(tmp_path: Path) -> None:
    path = write(tmp_path / "all.jsonl", [ROW, ROW])
    scores = run(tmp_path, path, path, *COLUMNS)
    bad = {name: one["value"] for name, one in scores["bad"].items() if "minus" not in name}
    # person2 says tom and person3 have a car: 8 words, of which the dialogue has person2, a, car.
    assert bad == pytest.approx(
        {
            "rouge1": 6 / 14, "rouge2": 2 / 12, "rougeL": 6 / 14, "rougeLsum": 6 / 14,
            "words": 8, "length_ratio": 8 / 6, "novelty1": 5 / 8, "novelty2": 7 / 7,
            "novelty3": 1, "copy_density": 3 / 8,
            "unfaithful_speaker": 1, "unfaithful_name": 1, "swapped_speakers": 1,
        }
    )  # fmt: skip
    assert scores["bad"]["words"] == {"value": 8, "n": 2, "low": 8, "high": 8}
    good = {name: one["value"] for name, one in scores["good"].items()}
    assert (good["rouge1"], good["unfaithful_name"], good["swapped_speakers"]) == (1, 0, 0)


def test_columns_are_compared_with_the_first(tmp_path: Path) -> None:
    rows = [{"a": "x", "b": "x y", "c": "z", "r": "x"}, {"a": "y", "b": "y z", "c": "z", "r": "y"}]
    path = write(tmp_path / "all.jsonl", rows)
    columns = ["--prediction_columns", "a,b,c", "--reference_columns", "r"]
    scores = run(tmp_path, path, path, *columns)
    same = {"n": 2, "low": pytest.approx(-1 / 3), "high": pytest.approx(-1 / 3)}
    assert scores["b"]["rouge1_minus_a"] == {"value": pytest.approx(-1 / 3), **same}
    assert scores["c"]["rouge1_minus_a"]["value"] == -1
    names = {name for column in scores.values() for name in column if "minus" in name}
    assert names and all(name.endswith("_minus_a") for name in names)
    assert not any("minus" in name for name in scores["a"])


def test_toxicity_is_that_of_the_classifier(tmp_path: Path, roberta: str) -> None:
    texts = ["a dog", "you are late"]
    path = write(tmp_path / "p.txt", [{"p": text} for text in texts])
    scores = run(tmp_path, path, path, "--toxicity", roberta)["prediction"]
    expected = RewardScorer(roberta).rate(texts, "hate")["toxicity"]
    assert scores["toxicity"]["value"] == pytest.approx(sum(expected) / 2)
    scores = run(tmp_path, path, path, "--toxicity", roberta, "--toxic_label", "NOTHATE")
    assert scores["prediction"]["toxicity"]["value"] == pytest.approx(
        1 - sum(expected) / 2, abs=1e-6
    )


# Bad files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "columns", "message"),
    [
        ("p.txt", b"one\n", "", "p.txt has 1 rows and .*r.txt has 2"),
        ("p.txt", b"", "", "p.txt is empty"),
        ("p.txt", b"one\ntw\xe9\n", "", "p.txt, line 2: column .prediction. is not UTF-8"),
        ("p.txt", b"one\ntwo\n", "x", "no column x; it has prediction"),
        ("p.jsonl", b'{"a": "x"}\n{"a"\n', "a", "p.jsonl, line 2: broken JSON"),
        ("p.jsonl", b'{"a": "x", "b": "y"}\n' * 2, "", r"several columns \(a, b\)"),
        ("p.jsonl", b'{"a": "x", "b": "y"}\n' * 2, "c", "no column c; it has a, b"),
        ("p.jsonl", b'{"a": ["x", "y"]}\n' * 2, "a", "p.jsonl, line 1: column 'a' has 2 texts"),
        ("p.jsonl", b'{"a": "x"}\n{"a": null}\n', "a", "p.jsonl, line 2: column 'a' is None"),
        ("p.jsonl", b'{"a": "x"}\n\n{"b": "y"}\n', "a", "p.jsonl, line 3: column 'a' is missing"),
        ("p.jsonl", b'{"a": 3}\n{"a": 4}\n', "a", "p.jsonl, line 1: column 'a' is 3"),
        ("p.jsonl", b'{"a": "x"}\n{"a": "\\ud800"}\n', "a", "line 2: column 'a' is not UTF-8"),
        ("p.csv", b"a,b\n1,2\n3\n", "a", "p.csv, line 3: 1 cells where the header has 2"),
        ("p.csv", b"a,b\n", "a", "p.csv is empty"),
        ("none.csv", None, "a", "there is no file .*none.csv"),
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
    code = main([*files, "--out", str(out), "--prediction_columns", columns])
    assert code == 2
    assert not out.exists()

    assert re.search(message, caplog.text), caplog.text
