"""The `compare` command: answer, tables, files, and runs that cannot be read."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignsum.commands.compare import main
from common.run_folder import RunFolder
from metrics.intervals import Estimate
from reporting.answer import find_answer
from reporting.comparison import Comparison
from reporting.comparison_files import make_csv
from reporting.numbers import ROUGE_LABELS
from reporting.runs import read_runs
from reporting.table import make_differences, make_other_results, make_results
from tests.reporting import run_folders


def write_run(
    path: Path, rouge: list[float], trainable: int = 5, dialogue: str = "d", **summary: Any
) -> Path:
    """A run whose every ROUGE is the mean of `rouge`, with an interval of 0.05 to both sides."""
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
    folder.record_metrics({f"test/{key}": estimate for key in ROUGE_LABELS})
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


def answer(*paths: Path) -> list[str]:
    return find_answer(compare(*paths)).lines


def tabulate(comparison: Comparison) -> list[dict[str, str]]:
    titles, *rows = make_results(comparison).texts_with_notes
    return [dict(zip(titles, cells, strict=True)) for cells in rows]


# Tables -------------------------------------------------------------------------------------------


def test_cells(tmp_path: Path) -> None:
    folder = RunFolder(write_run(tmp_path / "lora", [0.4, 0.6]))
    folder.record_metrics(
        {
            "test/toxicity_before": Estimate(0.3, 2, 0.2, 0.4),
            "test/toxicity": Estimate(0.1, 2, 0.0, 0.2),
            "test/toxicity_change": Estimate(-0.2, 2, -0.3, -0.1),
        }
    )
    rouge = dict.fromkeys(ROUGE_LABELS.values(), "50.0\n45.0 to 55.0")
    assert tabulate(compare(folder.path)) == [
        {
            "run": "lora", "n": "2", **rouge,
            "toxicity ↓": "30.0 → 10.0\n-20.0 (-30.0 to -10.0)",
            "trained weights": "5\n0.5 %", "time": "1 min 15 s", "memory": "1.00 GiB",
            "notes": "supervised",
        }
    ]  # fmt: skip


def test_reward_models_have_a_table_of_their_own(tmp_path: Path) -> None:
    write_run(tmp_path / "zero_shot", [0.2, 0.2], trainable=0)
    reward = RunFolder(tmp_path / "reward")
    reward.update_summary(method="reward_model", seconds=4000)
    reward.record_metrics({"test/accuracy": Estimate(0.95, 40, 0.9, 1.0)})
    RunFolder(tmp_path / "untested").update_summary(method="lora")
    comparison = compare(*(tmp_path / name for name in ("zero_shot", "reward", "untested")))
    assert comparison.problems == []
    names = [(row["run"], row["notes"]) for row in tabulate(comparison)]
    assert names == [("zero_shot", "prompting")]
    assert make_other_results(comparison).texts == [
        ["run", "accuracy", "time"], ["reward", "0.950\n0.900 to 1.000", "1 h 06 min"]
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("fitted", "note"),
    [(2.4, "; 2.4 of 3 examples fit"), (2.996, "; 2.9 of 3 examples fit"), (3, "")],
)
def test_examples_that_did_not_fit_are_noted(tmp_path: Path, fitted: float, note: str) -> None:
    data = {"test": {"shots_asked": 3, "shots_fitted_mean": fitted}}
    path = write_run(tmp_path / "few_shot", [0.2, 0.2], data=data)
    assert tabulate(compare(path))[0]["notes"] == f"supervised{note}"


def test_people_are_shown_but_not_ranked(tmp_path: Path) -> None:
    human = write_run(tmp_path / "human", [0.9, 0.9], trainable=0, method="human")
    costs = {"parameters": {"trainable": 0, "total": 0}, "seconds": None, "peak_memory_bytes": None}
    RunFolder(human).update_summary(backbone=None, **costs)
    comparison = compare(human, write_run(tmp_path / "lora", [0.5, 0.5]))
    _, row = tabulate(comparison)
    assert [row[name] for name in ("trained weights", "time", "memory")] == ["-"] * 3
    assert row["notes"] == "no model; each reference against the others"
    assert find_answer(comparison).lines == [
        "lora is the only tested method.", "ROUGE-1 50.0 (45.0 to 55.0).",
    ]  # fmt: skip
    assert "human,cost/" not in make_csv(comparison)
    assert comparison.labels[comparison.baseline] == "lora"  # no untrained model: the first one


def test_narrow_terminals_drop_columns(tmp_path: Path) -> None:
    table = make_results(compare(write_run(tmp_path / "lora", [0.5, 0.5])))
    titles, _ = table.narrowed(60).texts
    assert "ROUGE-1" in titles
    assert "ROUGE-Lsum" not in titles
    assert table.narrowed(500).texts == table.texts


def test_the_baseline_is_the_best_without_training_or_the_named_one(tmp_path: Path) -> None:
    paths = [
        write_run(tmp_path / "lora", [0.5, 0.6]),
        write_run(tmp_path / "zero", [0.1, 0.2], trainable=0),
        write_run(tmp_path / "one", [0.2, 0.2], trainable=0),
        write_run(tmp_path / "human", [0.9, 0.9], trainable=0, method="human"),
    ]
    comparison = compare(*paths)
    assert comparison.labels[comparison.baseline] == "one"
    *_, lora = make_differences(comparison, comparison.baseline).texts
    assert lora[:2] == ["lora", "+35.0\n+30.0 to +40.0"]
    rows = csv.DictReader(make_csv(comparison).splitlines())
    values = {(row["run"], row["metric"]): float(row["value"]) for row in rows}
    assert values["lora", "test/rouge1_minus_one"] == pytest.approx(0.35)
    for name in ("zero", str(tmp_path / "zero")):
        comparison = compare(*paths, baseline=name)
        assert comparison.labels[comparison.baseline] == "zero"
    out = tmp_path / "r"
    assert main([*map(str, paths), "--baseline", "nine", "--out", str(out)]) == 2
    assert not out.exists()


# The answer ---------------------------------------------------------------------------------------


def test_differences_are_paired_by_example(tmp_path: Path) -> None:
    # Separate intervals overlap by far, yet one is better by exactly 0.01 on each dialogue.
    one = write_run(tmp_path / "one", [0.1, 0.5, 0.9])
    two = write_run(tmp_path / "two", [0.11, 0.51, 0.91])
    assert answer(one, two) == [
        "two summarizes best.",
        "ROUGE-1 51.0 (46.0 to 56.0), 1.0 (1.0 to 1.0) above one.",
    ]
    assert [row["notes"] for row in tabulate(compare(one, two))] == [
        "supervised",
        "supervised; best",
    ]


def test_a_difference_by_chance_is_no_win(tmp_path: Path) -> None:
    rouge = {"a": [0.9, 0.1, 0.5], "b": [0.1, 0.9, 0.49], "c": [0.5, 0.48, 0.5], "d": [0.0] * 3}
    comparison = compare(*(write_run(tmp_path / name, own) for name, own in rouge.items()))
    best, _ = find_answer(comparison).lines
    assert best == "No clear winner: a, b and c are not clearly different."
    notes = [row["notes"] for row in tabulate(comparison)]
    assert notes == [*["supervised; tied for best"] * 3, "supervised"]


@pytest.mark.parametrize(
    ("rouge", "best"), [([0.4] * 3, "one summarizes best."), ([0.48] * 3, "No clear winner: ")]
)
def test_other_dialogues_are_not_paired(tmp_path: Path, rouge: list[float], best: str) -> None:
    one = write_run(tmp_path / "one", [0.52, 0.52])
    lines = answer(one, write_run(tmp_path / "two", rouge, dialogue="another"))
    assert lines[0].startswith(best)
    assert "on other dialogues" in lines[1]
    assert lines[-1] == "Not all runs were tested on the same dialogues."


def test_the_least_toxic_method_and_its_cost(tmp_path: Path) -> None:
    lora, dpo = (write_run(tmp_path / name, [v] * 9) for name, v in (("lora", 0.5), ("dpo", 0.4)))
    for path, toxicity in ((lora, 0.3), (dpo, 0.1)):
        rows = RunFolder(path).read_predictions()
        RunFolder(path).merge_predictions([row | {"toxicity": toxicity} for row in rows])
        RunFolder(path).record_metrics({"test/toxicity": Estimate(toxicity, 9, 0.0, 0.4)})
    RunFolder(dpo).update_summary(backbone="large")
    assert answer(lora, dpo)[2:] == [
        "dpo is the least toxic trained method.",
        "Toxicity 10.0 (0.0 to 40.0), -20.0 (-20.0 to -20.0) compared with lora, "
        "at -10.0 (-10.0 to -10.0) ROUGE-1.",
        "Not all runs have the same backbone.",
    ]


# Files --------------------------------------------------------------------------------------------


def test_files_of_a_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [str(write_run(tmp_path / name, [0.5, 0.5])) for name in ("lora", "full_ft")]
    summaries = [Path(run, "summary.json").read_bytes() for run in runs]
    out = tmp_path / "report"
    for _ in range(2):  # the second time a glob would find the report, too
        assert main([*runs, str(out), "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "full_ft" in shown
    assert "45.0 to 55.0" in shown
    page = (out / "comparison.md").read_text()
    assert "| lora | 2 | 50.0<br>45.0 to 55.0 |" in page
    assert "## Differences to lora" in page
    assert "| full_ft | +0.0<br>+0.0 to +0.0 |" in page
    assert "(plots/results.png)" in page
    assert "Not shown" not in page
    assert (out / "plots" / "results.png").read_bytes()[:4] == b"\x89PNG"
    assert (out / "report.html").read_text().startswith("<!doctype html>")
    with (out / "comparison.csv").open(newline="") as file:
        rows = {(row["run"], row["metric"]): row for row in csv.DictReader(file)}
    assert rows["lora", "test/rouge1"]["value"] == "0.5"
    assert rows["lora", "test/rouge1"]["n"] == "2"
    assert rows["full_ft", "parameters/trainable"]["value"] == "5"
    assert rows["full_ft", "test/rouge1_minus_lora"]["value"] == "0.0"
    assert [Path(run, "summary.json").read_bytes() for run in runs] == summaries


def break_run(folder: RunFolder, how: str) -> None:
    folder.path.mkdir(exist_ok=True)
    if how == "summary":
        folder.summary.write_text("{")
    elif how == "metrics":
        folder.update_summary(metrics={"test/rouge1": {"value": 0.5, "mean": 0.5}})
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
        ("metrics", "not as a run writes it"),
        ("predictions", "predictions.jsonl, line 1"),
    ],
)
def test_a_broken_run_is_named_and_the_others_are_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str, message: str
) -> None:
    good = str(write_run(tmp_path / "good", [0.5, 0.5]))
    bad = RunFolder(tmp_path / "bad")
    break_run(bad, how)
    out = tmp_path / "report"
    assert main([str(bad.path), good, "--out", str(out)]) == 1
    assert message in caplog.text
    page = (out / "comparison.md").read_text()
    assert "| good |" in page
    assert message in page.split("## Not shown")[1]
    assert main([str(bad.path), "--out", str(tmp_path / "none")]) == 2
    assert not (tmp_path / "none").exists()


def test_runs_with_the_same_name_are_told_apart(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / part / "ppo", [0.5, 0.5]) for part in "ab"]
    assert [run.name for run in read_runs(paths)[0]] == [str(path) for path in paths]


def test_wrong_settings_are_refused_before_anything_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = str(write_run(tmp_path / "run", [0.5, 0.5]))
    (tmp_path / "file").write_text("mine")
    out = str(tmp_path / "out")
    assert main([path, "--out", str(tmp_path / "file")]) == 2
    assert main([path, "--out", path]) == 2
    assert main([path, "--out", out, "--baseline", "none"]) == 2
    for message in ("is a file; name a folder", "is a run; name", "--baseline none is not among"):
        assert message in caplog.text
    assert not Path(out).exists()
    assert json.loads(Path(path, "summary.json").read_text())["backbone"] == "tiny"
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 2


def test_runs_of_the_same_seeds_are_paired_whatever_their_order(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    paths = []
    for name, gain in (("lora", 0.0), ("ppo", 0.1)):
        for seed in (1, 2) if name == "lora" else (2, 1):
            values = {"rouge1": (rng.normal(0, 0.01, 20) + 0.2 * seed + gain).tolist()}
            folder = tmp_path / f"{name}_s{seed}"
            paths.append(run_folders.write_run(folder, values, name, seed, config={"model": name}))
    runs, _ = read_runs(paths)
    comparison = Comparison(runs)
    assert [group.label for group in comparison.groups] == ["lora", "ppo"]
    gap = comparison.difference(0, 1, "rouge1")
    assert gap is not None
    assert gap.low is not None
    assert gap.high is not None
    # The seeds are 0.2 apart, and that has no part in it.
    assert 0.09 < gap.low < gap.high < 0.11
