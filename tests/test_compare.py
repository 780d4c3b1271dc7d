import csv
import json
from pathlib import Path
from typing import Any

import pytest

from alignsum import __main__ as report
from common.run_folder import RunFolder
from metrics.intervals import Estimate
from metrics.words import KEYS
from reporting.charts import place_labels
from reporting.compare import make_csv
from reporting.comparison import Comparison
from reporting.formats import format_dollars, format_estimate, format_interval
from reporting.runs import Run, read_runs
from reporting.tables import make_differences, make_rows
from reporting.verdict import make_verdict


def lay_run(
    path: Path, rouge: list[float], trainable: int = 5, dialogue: str = "d", **summary: Any
) -> Path:
    """A run whose every ROUGE is the mean of `rouge` with an interval of 0.05 to both sides."""
    folder = RunFolder(path)
    folder.update_summary(
        backbone="tiny",
        parameters={"trainable": trainable, "total": 1000},
        seconds=75.4,
        peak_memory_bytes=2**30,
        **summary,
    )
    mean = sum(rouge) / len(rouge)
    estimate = Estimate(mean, len(rouge), mean - 0.05, mean + 0.05)
    folder.record_metrics({f"test/{key}": estimate for key in KEYS})
    folder.merge_predictions(
        [
            {"id": str(i), "dialogue": dialogue, "references": ["r"] * 3, "rouge1": v}
            for i, v in enumerate(rouge)
        ]
    )
    return path


def compare(*paths: Path, **settings: Any) -> Comparison:
    runs, problems = read_runs(paths)
    return Comparison(runs, problems, **settings)


def read(*paths: Path) -> list[str]:
    return make_verdict(compare(*paths)).sentences


def make_row(run: Run) -> dict[str, str]:
    titles, cells = make_rows(Comparison([run]))
    return dict(zip(titles, cells, strict=True))


def test_cells(tmp_path: Path) -> None:
    lay_run(tmp_path / "lora", [0.4, 0.6])
    folder = RunFolder(tmp_path / "lora")
    folder.record_metrics(
        {
            "test/toxicity_before": Estimate(0.3, 2, 0.2, 0.4),
            "test/toxicity": Estimate(0.1, 2, 0.0, 0.2),
            "test/toxicity_change": Estimate(-0.2, 2, -0.3, -0.1),
        }
    )
    (run,), _ = read_runs([folder.path])
    rouge = dict.fromkeys(("ROUGE-1", "ROUGE-2", "ROUGE-L", "ROUGE-Lsum"), "50.0\n45.0 to 55.0")
    assert make_row(run) == {
        "run": "lora", "n": "2", "refs": "3", **rouge,
        "toxicity": "30.0 → 10.0\n-20.0 (-30.0 to -10.0)",
        "trainable": "5\n0.5 %", "time": "75 s", "peak memory": "1.00 GiB",
    }  # fmt: skip


def test_notes_and_gaps(tmp_path: Path) -> None:
    lay_run(tmp_path / "zero_shot", [0.2, 0.2], trainable=0)
    reward = RunFolder(tmp_path / "reward")
    reward.update_summary(method="reward_model", seconds=4000)
    reward.record_metrics({"test/accuracy": Estimate(0.95, 40, 0.9, 1.0)})
    RunFolder(tmp_path / "untested").update_summary(method="lora")
    runs, problems = read_runs([tmp_path / name for name in ("zero_shot", "reward", "untested")])
    assert problems == []
    rows = [make_row(run) for run in runs]
    accuracy = "test/accuracy 0.950 (0.900 to 1.000, n = 40)"
    notes = ["no training", accuracy, "not tested"]
    assert [row["notes"] for row in rows] == notes
    assert [rows[1][name] for name in ("n", "refs", "ROUGE-1")] == ["-", "-", "-"]
    assert rows[1]["time"] == "1 h 06 min"


@pytest.mark.parametrize(
    ("data", "notes"),
    [
        ({"test": {"shots_asked": 3, "shots_fitted_mean": 2.4}}, "2.4 of 3 examples fit"),
        ({"test": {"shots_asked": 3, "shots_fitted_mean": 2.996}}, "2.9 of 3 examples fit"),
        ({"test": {"shots_asked": 3, "shots_fitted_mean": 3.0}}, ""),
        ({"test": {"shots_asked": 0, "shots_fitted_mean": 0.0}}, ""),
        ({"train": {"shots_asked": 3, "shots_fitted_mean": 1.0}}, ""),
    ],
)
def test_examples_that_did_not_fit_are_noted(tmp_path: Path, data: dict, notes: str) -> None:
    lay_run(tmp_path / "few_shot", [0.2, 0.2], data=data)
    (run,), _ = read_runs([tmp_path / "few_shot"])
    assert make_row(run).get("notes", "") == notes


def test_page_table_and_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [str(lay_run(tmp_path / name, [0.5, 0.5])) for name in ("lora", "full_ft")]
    out = tmp_path / "report"
    assert report.main(["compare", *runs, "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "full_ft" in shown
    assert "45.0 to 55.0" in shown
    page = (out / "comparison.md").read_text()
    assert "| lora | 2 | 3 | 50.0<br>45.0 to 55.0 |" in page
    assert "## Differences to lora" in page
    assert "| full_ft | +0.0<br>+0.0 to +0.0 |" in page
    assert "![ROUGE by run](plots/rouge_by_run.png)" in page
    assert "Not shown" not in page
    assert (out / "plots" / "rouge_by_run.png").read_bytes()[:4] == b"\x89PNG"
    assert "<svg" in (out / "plots" / "rouge_by_run.svg").read_text()
    assert (out / "report.html").read_text().startswith("<!doctype html>")
    with (out / "comparison.csv").open(newline="") as file:
        rows = {(row["run"], row["metric"]): row for row in csv.DictReader(file)}
    assert rows["lora", "test/rouge1"] | {"low": "", "high": ""} == {
        "run": "lora", "metric": "test/rouge1", "value": "0.5", "n": "2", "low": "", "high": "",
    }  # fmt: skip
    assert rows["full_ft", "parameters/trainable"]["value"] == "5"
    assert rows["full_ft", "test/rouge1_minus_lora"]["value"] == "0.0"


def test_its_own_folder_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lay_run(tmp_path / "lora", [0.5, 0.5])
    for _ in range(2):  # the second time the glob finds the report too
        runs = [f"{tmp_path}/{path.name}/" for path in sorted(tmp_path.iterdir())]
        assert report.main(["compare", *runs, "--out", str(tmp_path / "report")]) == 0
    assert len(runs) == 2
    assert "Not shown" not in (tmp_path / "report" / "comparison.md").read_text()
    assert "no summary.json" not in caplog.text


def break_run(folder: RunFolder, how: str) -> None:
    folder.path.mkdir(exist_ok=True)
    if how == "summary":
        folder.summary.write_text("{")
    elif how == "metrics":
        folder.update_summary(metrics={"test/rouge1": {"value": 0.5, "mean": 0.5}})
    elif how == "value":
        folder.update_summary(metrics={"test/rouge1": {"value": None}})
    elif how == "predictions":
        folder.update_summary(metrics={})
        folder.predictions.write_text("{\n")
    elif how == "gone":
        folder.path.rmdir()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("gone", "no such folder"),
        ("empty", "no summary.json"),
        ("summary", "not JSON"),
        ("metrics", '"metrics" in summary.json'),
        ("value", '"metrics" in summary.json'),
        ("predictions", "predictions.jsonl, line 1"),
    ],
)
def test_broken_run_is_named_and_the_rest_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str, message: str
) -> None:
    good = str(lay_run(tmp_path / "good", [0.5, 0.5]))
    bad = RunFolder(tmp_path / "bad")
    break_run(bad, how)
    out = tmp_path / "report"
    assert report.main(["compare", str(bad.path), good, "--out", str(out)]) == 0
    assert message in caplog.text
    page = (out / "comparison.md").read_text()
    assert "| good |" in page
    assert "## Not shown" in page
    assert message in page
    assert report.main(["compare", str(bad.path), "--out", str(tmp_path / "none")]) == 2
    assert not (tmp_path / "none").exists()


def test_no_run_is_a_usage_error() -> None:
    with pytest.raises(SystemExit) as stop:
        report.main(["compare"])
    assert stop.value.code == 2


def test_same_examples_are_paired(tmp_path: Path) -> None:
    # Separate intervals overlap by far, yet one is better by exactly 0.01 on each dialogue.
    one = lay_run(tmp_path / "one", [0.1, 0.5, 0.9])
    two = lay_run(tmp_path / "two", [0.11, 0.51, 0.91])
    assert read(one, two) == [
        "Use two: its ROUGE-1 of 51.0 (95 % interval 46.0 to 56.0, n = 3) is the highest of 2 "
        "methods, 1.0 (1.0 to 1.0) above one.",
        "How sure: two comes first in all of 1,000 resamples of the same 3 test dialogues; one run "
        "stands behind each, so what another training seed would change is not known.",
    ]


def test_a_difference_of_chance_is_not_clear(tmp_path: Path) -> None:
    one = lay_run(tmp_path / "one", [0.1, 0.9, 0.5, 0.5])
    two = lay_run(tmp_path / "two", [0.9, 0.11, 0.5, 0.5], trainable=7)
    choice, certainty = read(one, two)
    assert choice.startswith("Use two or one: two has the highest ROUGE-1, 50.2 (")
    assert "but one, 0.3 (" in choice
    assert " below, is not clearly behind; " in choice
    assert choice.endswith("; of these one trains the fewest weights, 5.")
    share = float(certainty.split(" %")[0].split()[-1])
    assert 30 < share < 80


def test_several_that_are_close_are_all_named(tmp_path: Path) -> None:
    rouge = {"a": [0.9, 0.1, 0.5], "b": [0.1, 0.9, 0.49], "c": [0.5, 0.48, 0.5], "d": [0.0] * 3}
    paths = [lay_run(tmp_path / name, values) for name, values in rouge.items()]
    assert read(*paths)[0].startswith("Use a, b or c: a has the highest")
    assert " below and c, " in read(*paths)[0]
    assert " below, are not clearly behind" in read(*paths)[0]


@pytest.mark.parametrize(
    ("rouge", "words"), [([0.4, 0.4, 0.4], "is clear of two"), ([0.48] * 3, "is not told apart")]
)
def test_different_examples_are_not_paired(tmp_path: Path, rouge: list[float], words: str) -> None:
    one, two = lay_run(tmp_path / "one", [0.52, 0.52]), tmp_path / "two"
    lines = read(one, lay_run(two, rouge, dialogue="another"))
    assert words in lines[1]
    assert lines[-1] == "Careful: not all runs were tested on the same dialogues."


def test_toxicity_and_backbones_are_read_out(tmp_path: Path) -> None:
    ppo = lay_run(tmp_path / "ppo", [0.5, 0.5])
    RunFolder(ppo).record_metrics({"test/toxicity_change": Estimate(-0.2, 300, -0.3, -0.1)})
    RunFolder(tmp_path / "other").update_summary(backbone="large")
    lines = read(ppo, tmp_path / "other")
    assert lines[2] == (
        "ppo changed mean toxicity (x 100) by -20.0 (95 % interval -30.0 to -10.0, n = 300), "
        "paired over the same dialogues: clear of zero."
    )
    assert "same backbone" in lines[3]


def test_what_no_model_made_is_shown_but_not_ranked(tmp_path: Path) -> None:
    human = lay_run(tmp_path / "human", [0.9, 0.9], trainable=0, method="human")
    costs = {"parameters": {"trainable": 0, "total": 0}, "seconds": None, "peak_memory_bytes": None}
    RunFolder(human).update_summary(backbone=None, **costs)
    lora = lay_run(tmp_path / "lora", [0.5, 0.5])
    runs, _ = read_runs([human, lora])
    comparison = Comparison(runs)
    assert [row[-4:] for row in make_rows(comparison)[1:]] == [
        ["-", "-", "-", "each reference against the others"],
        ["5\n0.5 %", "75 s", "1.00 GiB", ""],
    ]
    # No model is called the best but lora, nor are two backbones found.
    assert make_verdict(comparison).sentences == [
        "lora has a test ROUGE-1 of 50.0 (95 % interval 45.0 to 55.0, n = 2).",
        "There is no other method to hold it against.",
    ]
    assert "human,cost/" not in make_csv(comparison)
    assert comparison.groups[comparison.baseline].label == "human"  # the first: no untrained model


def test_numbers_of_references_that_differ_are_shown(tmp_path: Path) -> None:
    path = lay_run(tmp_path / "run", [0.5, 0.5])
    rows = RunFolder(path).read_predictions()
    rows[0]["references"] = ["r"]
    RunFolder(path).merge_predictions(rows)
    assert make_row(read_runs([path])[0][0])["refs"] == "1 to 3"


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    paths = [lay_run(tmp_path / part / "ppo", [0.5, 0.5]) for part in "ab"]
    assert [run.name for run in read_runs(paths)[0]] == [str(path) for path in paths]


def test_the_baseline_is_the_best_without_training_or_what_is_named(tmp_path: Path) -> None:
    paths = [
        lay_run(tmp_path / "lora", [0.5, 0.6]),
        lay_run(tmp_path / "zero", [0.1, 0.2], trainable=0),
        lay_run(tmp_path / "one", [0.2, 0.2], trainable=0),
        lay_run(tmp_path / "human", [0.9, 0.9], trainable=0, method="human"),
    ]
    comparison = compare(*paths)
    assert comparison.groups[comparison.baseline].label == "one"
    _, lora, *_ = make_differences(comparison)
    assert lora[:2] == ["lora", "+35.0\n+30.0 to +40.0"]
    rows = csv.DictReader(make_csv(comparison).splitlines())
    values = {(row["run"], row["metric"]): float(row["value"]) for row in rows}
    assert values["lora", "test/rouge1_minus_one"] == pytest.approx(0.35)
    for name in ("zero", str(tmp_path / "zero")):
        comparison = compare(*paths, baseline=name)
        assert comparison.groups[comparison.baseline].label == "zero"
    with pytest.raises(ValueError, match="--baseline nine is none of the runs"):
        compare(*paths, baseline="nine")
    args = [str(path) for path in paths]
    assert report.main(["compare", *args, "--baseline", "nine", "--out", str(tmp_path / "r")]) == 2
    assert not (tmp_path / "r").exists()


def test_dollars_are_time_by_the_price_of_an_hour(tmp_path: Path) -> None:
    path = lay_run(tmp_path / "run", [0.5, 0.5])  # 75.4 s
    titles, cells = make_rows(compare(path, price_per_hour=36.0))
    assert cells[titles.index("dollars")] == "$0.75"
    assert "run,cost/dollars,0.754" in make_csv(compare(path, price_per_hour=36.0))
    assert "dollars" not in make_rows(compare(path))[0]
    shown = [format_dollars(one) for one in (1234.5, 0.0012, 0.0)]
    assert shown == ["$1,234.50", "$0.0012", "$0.00"]


def test_a_wrong_place_or_price_is_refused_before_anything_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = str(lay_run(tmp_path / "run", [0.5, 0.5]))
    file = tmp_path / "file"
    file.write_text("mine")
    assert report.main(["compare", path, "--out", str(file)]) == 2
    assert "is a file; name a folder" in caplog.text
    assert report.main(["compare", path, "--out", path]) == 2
    assert "holds a run" in caplog.text
    out = str(tmp_path / "out")
    assert report.main(["compare", path, "--out", out, "--price_per_hour", "-1"]) == 2
    assert "--price_per_hour has to be" in caplog.text
    assert not (tmp_path / "out").exists()


def test_names_of_dots_cover_no_other_name_where_there_is_room() -> None:
    marks = [(100.0, 100.0, 40.0), (104.0, 101.0, 40.0), (99.0, 103.0, 40.0), (290.0, 50.0, 40.0)]
    corners = place_labels(marks, 0.0, 300.0)
    assert all(x + 40 <= 300 for x, _ in corners)
    for i, (x, y) in enumerate(corners):
        assert all(abs(x - left) >= 40 or abs(y - top) >= 14 for left, top in corners[:i])


def test_summary_stays_the_runs_own(tmp_path: Path) -> None:
    path = lay_run(tmp_path / "run", [0.5, 0.5])
    before = json.loads((path / "summary.json").read_text())
    report.main(["compare", str(path), "--out", str(tmp_path / "report")])
    assert json.loads((path / "summary.json").read_text()) == before


def test_a_rounded_zero_has_no_minus() -> None:
    nothing = Estimate(-0.0002, 9, -0.0004, 0.0)
    assert format_estimate(nothing, sign=True) == "+0.0"
    assert format_interval(nothing) == "+0.0 to +0.0"
