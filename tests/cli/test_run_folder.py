import json
from pathlib import Path

import pytest

from common.run_folder import RunFolder
from metrics.intervals import Estimate


def test_holds_and_clears_only_what_a_run_leaves(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    assert not folder.holds_run()
    folder.update_summary(seed=1)
    (folder.export / "deep").mkdir(parents=True)
    folder.rollouts.mkdir()
    (tmp_path / "config.test.yaml").write_text("")
    assert folder.holds_run()
    folder.clear()
    assert not folder.holds_run()
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_summary_merges(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "new")
    assert folder.read_summary() == {}
    folder.update_summary(seed=1, method="lora")
    folder.update_summary(seed=2)
    folder.record_metrics({"test/rouge1": Estimate(0.5, 4, 0.4, 0.6)})
    folder.record_metrics({"test/loss": Estimate(1.5)})
    assert json.loads(folder.summary.read_text()) == {
        "seed": 2,
        "method": "lora",
        "metrics": {
            "test/rouge1": {"value": 0.5, "n": 4, "low": 0.4, "high": 0.6},
            "test/loss": {"value": 1.5, "n": None, "low": None, "high": None},
        },
    }
    assert [path.name for path in folder.path.iterdir()] == ["summary.json"]


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_broken_summary_is_named(tmp_path: Path, text: str) -> None:
    folder = RunFolder(tmp_path)
    folder.summary.write_text(text)
    with pytest.raises(ValueError, match=r"summary\.json .*repeat the run"):
        folder.read_summary()


def test_predictions_gather_columns_of_several_writers(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.merge_predictions(
        [{"id": "b", "prediction": "x\u2028é"}, {"id": "a", "prediction": "y"}]
    )
    folder.merge_predictions([{"id": "b", "toxicity": 0.1}, {"id": "a", "toxicity": 0.2}])
    assert folder.read_predictions() == [
        {"id": "b", "prediction": "x\u2028é", "toxicity": 0.1},
        {"id": "a", "prediction": "y", "toxicity": 0.2},
    ]


def test_predictions_of_an_earlier_test_do_not_survive(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.merge_predictions([{"id": i, "prediction": "old", "toxicity": 1.0} for i in "abc"])
    folder.merge_predictions([{"id": "a", "prediction": "new"}, {"id": "b", "prediction": "old"}])
    assert folder.read_predictions() == [
        {"id": "a", "prediction": "new"},
        {"id": "b", "prediction": "old", "toxicity": 1.0},
    ]


def test_rows_with_one_id_are_told_apart_by_place(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.merge_predictions([{"id": "a", "prediction": "1"}, {"id": "a", "prediction": "2"}])
    folder.merge_predictions([{"id": "a", "score": 1}, {"id": "a", "score": 2}])
    assert folder.read_predictions() == [
        {"id": "a", "prediction": "1", "score": 1},
        {"id": "a", "prediction": "2", "score": 2},
    ]


def test_broken_prediction_line_is_named(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.predictions.write_text('{"id": "a"}\n{"id"\n')
    with pytest.raises(ValueError, match=r"predictions\.jsonl, line 2"):
        folder.read_predictions()
