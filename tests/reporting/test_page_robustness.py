"""report.html with hostile texts, broken files and missing values."""

import json
from pathlib import Path
from typing import Any

import pytest

from common.run_folder import RolloutFiles, RunFolder
from metrics.intervals import Estimate
from reporting.runs import read_runs
from tests.reporting.parsed_page import Page, build
from tests.reporting.run_folders import draw_values, write_ppo, write_run

HOSTILE = [
    "</script><script>alert(1)</script>", "<!-- <script>", "a\u2028b\u2029c",
    "<img src=x onerror=1>", "\ud800 half a pair", "]]> & &amp; \" '", "{{ 7 * 7 }} {% raw %}",
    "$E=mc^2$",
]  # fmt: skip


def test_texts_stay_texts(tmp_path: Path) -> None:
    name = "<b>run<b> & $x$"
    values = draw_values(1, len(HOSTILE))
    path = tmp_path / name
    write_run(path, values, texts=[text.replace("\ud800", "?") for text in HOSTILE])
    predictions = path / "predictions.jsonl"
    # Half a surrogate pair is no text that a file can hold, but JSON can name it.
    whole = predictions.read_text(encoding="utf-8").replace("? half", "\\ud800 half")
    predictions.write_text(whole, encoding="utf-8")
    source = build(path)
    page = Page(source)
    assert [script.get("type") for script in page.scripts] == ["application/json", None]
    (run,) = json.loads(page.data)["examples"]["runs"]
    assert run["texts"] == HOSTILE
    assert "<script>alert" not in source
    assert "<img" not in source
    assert "<b>run<b>" not in source
    assert "\u2028" not in source
    source.encode("utf-8")


def test_half_written_files_are_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    good = write_run(tmp_path / "good", draw_values(0, 5))
    for name in ("predictions", "metrics", "config"):
        write_run(tmp_path / name, draw_values(1, 5))
    predictions = tmp_path / "predictions" / "predictions.jsonl"
    predictions.write_text(predictions.read_text()[:-40])
    with (tmp_path / "metrics" / "metrics.csv").open("a") as file:
        file.write("20,1.2e\n")
    (tmp_path / "config" / "config.yaml").write_text("model: {init_args: [\n")
    ppo = write_ppo(tmp_path / "ppo", draw_values(2, 5))
    rollouts = RolloutFiles(ppo).rows(5)
    rollouts.write_text(rollouts.read_text()[:-40])
    source = build(good, predictions.parent, tmp_path / "metrics", tmp_path / "config", ppo)
    page = Page(source)
    assert "predictions.jsonl, line 5: broken JSON" in source
    assert "metrics.csv has a broken row" in source
    assert "config.yaml is not YAML" in source
    assert "batch000005-rank0.jsonl: shown without this batch" in source
    rows = {c["data-row"] for c, _ in page.cells if "data-value" in c and c["data-of"] == "value"}
    assert rows == {"good", "predictions", "metrics", "config", "ppo"}
    gaps = {c["data-row"] for c, _ in page.cells if "data-value" in c and c["data-of"] != "value"}
    assert gaps == rows - {"predictions"}
    data = json.loads(page.data)
    assert "predictions" not in [run["name"] for run in data["examples"]["runs"]]
    assert [batch["batch"] for batch in data["rollouts"][0]["batches"]] == [0, 9]


def test_a_missing_metric_is_a_gap(tmp_path: Path) -> None:
    whole, part = draw_values(0, 5), draw_values(1, 5)
    del part["toxicity"], part["reward"]
    paths = [write_run(tmp_path / "whole", whole), write_run(tmp_path / "part", part)]
    RunFolder(paths[0]).metrics_csv.unlink()
    page = Page(build(*paths))
    texts = {
        (cell["data-row"], cell["data-metric"]): texts
        for cell, texts in page.cells
        if cell["data-of"] == "value"
    }
    assert texts["part", "toxicity"] == texts["part", "reward"] == ["-"]
    assert texts["part", "rouge1"] != ["-"]
    # A summary that knows more than its examples: a value without a difference.
    RunFolder(paths[1]).record_metrics({"test/toxicity": Estimate(0.5, 5, 0.4, 0.6)})
    page = Page(build(*paths))
    gaps = [c["data-metric"] for c, _ in page.cells if c["data-of"] != "value" and "data-n" in c]
    assert "toxicity" not in gaps
    assert "rouge1" in gaps


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("versions", ["torch"]),
        ("parameters", {"trainable": "many"}),
        ("data", {"test": 5}),
        ("metrics", {"test/rouge1": {"value": 0.5, "mean": 0.5}}),
        ("metrics", {"test/rouge1": {"value": "0.5"}}),
        ("metrics", {"test/rouge1": {"value": 0.5, "low": "x", "high": 0.6}}),
    ],
)
def test_a_summary_of_another_shape_is_named(tmp_path: Path, field: str, value: Any) -> None:
    good = write_run(tmp_path / "good", draw_values(0, 5))
    bad = write_run(tmp_path / "bad", draw_values(1, 5))
    RunFolder(bad).update_summary(**{field: value})
    runs, problems = read_runs([bad, good])
    assert [run.name for run in runs] == ["good"]
    assert "summary.json is not as a run writes it" in problems[0]


def test_only_test_dialogues_are_examples(tmp_path: Path) -> None:
    lora = write_run(tmp_path / "lora", draw_values(0, 5))
    reward = RunFolder(tmp_path / "reward")
    reward.update_summary(method="reward_model", metrics={"test/accuracy": {"value": 0.9}})
    reward.merge_predictions([{"id": "pair_1", "dialogue": "d", "rewards": [1.0, 0.5]}])
    source = build(lora, reward.path)
    assert json.loads(Page(source).data)["examples"]["ids"] == [f"test_{i}" for i in range(5)]
    assert "<h2>Reward models and classifiers</h2>" in source
    source = build(reward.path)
    assert "there is no winner" in source
    assert 'id="examples"' not in source
    assert "No run logged anything over its steps" in source


def test_texts_of_before_are_shown_once(tmp_path: Path) -> None:
    start = write_run(
        tmp_path / "lora", draw_values(0, 4), texts=[f"Before {i}." for i in range(4)]
    )
    names = [
        [run["name"] for run in json.loads(Page(build(*paths)).data)["examples"]["runs"]]
        for paths in ([start], [])
        for paths in ([*paths, *(write_ppo(tmp_path / n, draw_values(1, 4)) for n in ("p", "q"))],)
    ]
    assert names == [["lora", "p", "q"], ["p", "p (before)", "q"]]
