"""The `baselines` command: values worked out by hand, and run folders like any other."""

import json
from pathlib import Path

import numpy as np
import pytest

from alignsum.commands.baselines import main
from common.run_folder import RunFolder
from datamodules.reading import DataError, Row
from metrics.faithfulness import CHECKS
from metrics.rouge_scores import KEYS
from metrics.text_statistics import STATISTICS
from reporting.baselines import human, lead_3, score_baseline
from reporting.comparison import Comparison
from reporting.runs import read_runs
from reporting.table import make_results


def make_row_of(*references: str, dialogue: str = "#Person1#: Hi.") -> Row:
    return Row("r0", dialogue, references)


def test_each_reference_is_held_against_the_others() -> None:
    assert human(make_row_of("a", "b", "c")) == [
        ("a", ["b", "c"]), ("b", ["a", "c"]), ("c", ["a", "b"]),
    ]  # fmt: skip
    # Two references that are alike are two people who agree.
    assert human(make_row_of("a", "a")) == [("a", ["a"]), ("a", ["a"])]
    assert human(make_row_of("a")) == []


def test_lead_3_is_three_lines_as_they_stand() -> None:
    dialogue = "#Person1#: Hi! Here?\r\n\n#Person2#: No.  \n   \n#Person1#: Oh.\n#Person2#: Bye."
    row = make_row_of("x", dialogue=dialogue)
    text = "#Person1#: Hi! Here?\n#Person2#: No.\n#Person1#: Oh."
    assert lead_3(row) == [(text, ("x",))]
    assert lead_3(make_row_of("x", dialogue="one line")) == [("one line", ("x",))]


def test_a_row_is_the_mean_over_its_references() -> None:
    # rouge1 F1: "a b"-"a b c d" 2/3, "a b"-"a x" 1/2, "a b c d"-"a x" 1/3.
    rows = [make_row_of("a b", "a b c d", "a x"), make_row_of("same words", "same words")]
    scores = score_baseline(rows, "human", stemmer=False).scores
    means = [(2 / 3 + 1 / 2) / 2, (2 / 3 + 1 / 3) / 2, (1 / 2 + 1 / 3) / 2]
    assert scores["rouge1"] == pytest.approx([np.mean(means), 1.0])
    assert scores["rouge1_best"] == pytest.approx([np.mean([2 / 3, 2 / 3, 1 / 2]), 1.0])


def test_all_else_that_a_test_measures_is_a_mean_over_candidates_too() -> None:
    row = make_row_of("two words", "a summary of five words", dialogue="B: two words\nC: no")
    human, lead = (score_baseline([row], name).scores for name in ("human", "lead_3"))
    assert human["words"] == [3.5]
    assert human["length_ratio"] == [pytest.approx((2 / 5 + 5 / 2) / 2)]
    assert human["novelty1"] == [pytest.approx((0 + 4 / 5) / 2)]
    assert lead["novelty1"] == [0.0]
    assert set(human) >= {*STATISTICS, *CHECKS}


def test_rows_of_one_reference_have_no_human() -> None:
    rows = [make_row_of("a"), make_row_of("a b", "a c")]
    found = score_baseline(rows, "human")
    assert (len(found.rows), found.skipped, found.scores["rouge1"]) == (1, 1, [0.5])
    with pytest.raises(DataError, match="no test row has more than one"):
        score_baseline(rows[:1], "human")


def test_two_run_folders_that_the_table_reads(tmp_path: Path) -> None:
    arguments = ["--source", "mini", "--out", str(tmp_path), "--max_test_rows", "20"]
    assert main([*arguments, "--toxicity", "mini"]) == 0
    for name in ("human", "lead_3"):
        folder = RunFolder(tmp_path / name)
        summary = folder.read_summary()
        assert summary["command"].startswith(
            "python -m alignsum baselines human lead_3 --source mini"
        )
        assert summary["method"] == name
        assert summary["parameters"] == {"trainable": 0, "total": 0}
        assert summary["seconds"] is None
        assert folder.config.is_file()
        rows = folder.read_predictions()
        assert [row["id"] for row in rows] == [f"test_{i}" for i in range(20)]
        for key in (*KEYS, "rouge1_best", "toxicity", "reward"):
            metric = summary["metrics"][f"test/{key}"]
            assert metric["n"] == 20
            assert metric["low"] < metric["value"] < metric["high"]
            assert metric["value"] == pytest.approx(np.mean([row[key] for row in rows]))
    lead = RunFolder(tmp_path / "lead_3").read_predictions()[0]
    assert lead["prediction"] == "\n".join(lead["dialogue"].split("\n")[:3])
    runs, problems = read_runs([tmp_path / "human", tmp_path / "lead_3"])
    assert problems == []
    titles, *rows = make_results(Comparison(runs)).texts_with_notes
    assert [row[:2] for row in rows] == [
        ["human", "20"], ["lead_3", "20"],
    ]  # fmt: skip
    assert "time" not in titles
    assert [row[-1] for row in rows] == ["no model; each reference against the others", "no model"]


def test_a_run_is_only_replaced_when_told_to(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    arguments = ["lead_3", "--source", "mini", "--out", str(tmp_path), "--max_test_rows", "2"]
    assert main(arguments) == 0
    assert not (tmp_path / "human").exists()
    before = RunFolder(tmp_path / "lead_3").summary.read_bytes()
    assert main([*arguments, "--stemmer", "false"]) == 2
    assert "--overwrite true" in caplog.text
    assert RunFolder(tmp_path / "lead_3").summary.read_bytes() == before
    assert main([*arguments, "--stemmer", "false", "--overwrite", "true"]) == 0
    assert RunFolder(tmp_path / "lead_3").summary.read_bytes() != before


def test_all_problems_are_reported_at_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    arguments = ["--out", str(tmp_path / "out"), "--toxicity", "./none", "--max_test_rows", "0"]
    assert main([*arguments, "--source", "./nothing"]) == 2
    for part in ("no file or folder './nothing'", "no folder './none'", "max_test_rows must be"):
        assert part in caplog.text
    assert main(["machine", "--source", "mini"]) == 2
    assert "no such baseline: machine" in caplog.text
    (tmp_path / "test.jsonl").write_text(json.dumps({"dialogue": "a", "summary": "b"}))
    assert main([*arguments[:2], "--source", str(tmp_path)]) == 2
    assert "leave this method out" in caplog.text
    assert not (tmp_path / "out").exists()
