"""The commands of the demo, and (slow) the demo itself on a few batches."""

import os
import subprocess
from pathlib import Path

import pytest

from alignsum.commands import baselines, demo
from alignsum.overlays import prepare_configs
from benchmarks import feedback_loop
from collecting import simulated_annotators
from common.run_folder import RunFolder

ROOT = Path(__file__).parents[2]


def test_the_table_has_a_row_for_every_method_in_order() -> None:
    assert demo.RUNS == (
        "human", "lead_3", "zero_shot", "one_shot", "few_shot", "full_ft", "lora", "soft_prompt",
        "reward", "ppo", "reward_feedback", "ppo_feedback", "dpo",
    )  # fmt: skip
    place = demo.STEPS.index("feedback")
    assert demo.STEPS[place - 1 : place + 2] == ("ppo", "feedback", "reward_feedback")
    assert [step for step in demo.STEPS if step != "feedback"] == list(demo.RUNS)


def test_real_dialogues_for_all_but_the_reward_model() -> None:
    for name in set(demo.RUNS) - set(demo.FEEDBACK):
        for command in demo.make_commands(name, "runs/real", source="some/folder"):
            assert ("some/folder" in command) == (name != "reward")
            assert ("configs/overlays/real_text.yaml" in command) == (
                name not in ("reward", *demo.BASELINES)
            )
        for command in demo.make_commands(name, "runs/demo"):
            assert "configs/overlays/real_text.yaml" not in command


def test_rankings_are_of_what_the_lora_says_and_both_roads_learn_from_them() -> None:
    sample, rank = demo.make_commands("feedback", "runs/x", seed=3)
    assert sample == [
        "-m", "alignsum", "rank", "sample", "runs/x/lora", "--input", "mini", "--split", "train",
        "--max_rows", "500", "--completions", "8",
        "--output", "runs/x/feedback/samples.jsonl", "--seed", "3", "--overwrite", "true",
    ]  # fmt: skip
    answers = "runs/x/feedback/answers.jsonl"
    assert rank == [
        "-m", "collecting.simulated_annotators", "runs/x/feedback/samples.jsonl", "--out", answers,
        "--seed", "3", "--overwrite",
    ]  # fmt: skip
    for name in ("reward_feedback", "dpo"):
        for command in demo.make_commands(name, "runs/x"):
            assert command[command.index("--data.source") + 1] == answers
    for command in demo.make_commands("ppo_feedback", "runs/x"):
        assert command[command.index("--model.reward_model") + 1] == "runs/x/reward_feedback/export"
        assert command[command.index("--model.adapter") + 1] == "runs/x/lora/export"


def test_the_benchmark_over_seeds_walks_the_same_road() -> None:
    root = Path("runs/x/3")
    options = feedback_loop.parse(["--annotators", "3", "--noise", "0.2", "--completions", "5"])
    steps = {step.result: step.commands for step in feedback_loop.make_steps(root, 3, options)}
    assert steps[root / "lora/predictions.jsonl"] == demo.fit_and_test("lora", root / "lora", 3)
    sample, rank = steps[root / "answers/train.jsonl"]
    assert sample[sample.index("--max_rows") + 1] == "167"  # three answers on each are 500
    assert sample[sample.index("--completions") + 1] == "5"
    assert rank[-4:] == ["--annotators", "3", "--noise", "0.2"]
    for split in ("validation", "test"):
        sample, rank = steps[root / f"answers/{split}.jsonl"]
        assert sample[sample.index("--split") + 1] == split
        assert sample[sample.index("--completions") + 1] == "5"
        assert rank[2] == sample[sample.index("--output") + 1] == f"{root}/samples/{split}.jsonl"
    # What a step reads is what an earlier one has made.
    made: list[str] = []
    for result, commands in steps.items():
        for part in (part for command in commands for part in command):
            if part in (f"{root}/lora/export", f"{root}/reward/export"):
                assert f"{Path(part).parent}/predictions.jsonl" in made
            if part == f"{root}/answers":
                assert f"{root}/answers/test.jsonl" in made
        made.append(str(result))


def test_real_dialogues_have_no_simulated_annotators(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    called: list[list[str]] = []
    monkeypatch.setattr(subprocess, "call", lambda command: called.append(command) or 0)
    assert demo.main(["--source", "some/folder", "--root", str(tmp_path)]) == 0
    assert called and not any("feedback" in part for command in called for part in command)
    with pytest.raises(SystemExit):
        demo.main(["dpo", "--source", "some/folder"])
    assert "dpo: the simulated annotators know the miniature only" in capsys.readouterr().err


def test_a_run_is_fitted_and_tested_with_the_same_settings() -> None:
    fit, test = demo.make_commands("ppo", "runs/x", seed=3)
    assert fit[:2] == ["train.py", "fit"]
    assert test[:2] == ["train.py", "test"]
    assert fit[2:] == test[2:] == [
        "--config", "configs/ppo.yaml", "--config", "configs/overlays/mini.yaml",
        "--model.adapter", "runs/x/lora/export", "--run_dir", "runs/x/ppo",
        "--seed_everything", "3", "--overwrite", "true",
    ]  # fmt: skip
    (command,) = demo.make_commands("human", "runs/x")
    assert command == [
        "alignsum.commands.baselines.py", "human", "--source", "mini", "--out", "runs/x",
        "--toxicity", "mini",
        "--overwrite", "true",
    ]  # fmt: skip


def test_every_overlay_has_a_section_for_every_method(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for name in set(demo.METHODS) - set(demo.FEEDBACK):
        for command in demo.make_commands(name, "runs/x", source="some/folder", quick=True):
            prepare_configs(command[2:])  # which refuses a class that an overlay forgot


def test_quick_is_an_epoch_of_a_few_batches_that_ends_in_a_validation() -> None:
    for name in demo.METHODS:
        for command in demo.make_commands(name, "runs/x", source="some/folder", quick=True):
            assert "configs/overlays/debug.yaml" in command
            epoch = ["--trainer.max_epochs", "1", "--trainer.check_val_every_n_epoch", "1"]
            said = all(part in command for part in [*epoch, "--trainer.val_check_interval"])
            assert said == (not name.endswith("_shot"))


def test_an_unknown_run_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        demo.main(["lorra"])
    assert stop.value.code == 2
    assert "no such run: lorra" in capsys.readouterr().err


def test_the_first_failure_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    called: list[list[str]] = []

    def call(command: list[str]) -> int:
        called.append(command)
        return 2 if "lora.yaml" in command[-1] else 0

    monkeypatch.setattr(subprocess, "call", call)
    assert demo.main(["human", "lora", "ppo", "--root", str(tmp_path)]) == 2
    assert "lora failed with exit code 2" in capsys.readouterr().out
    assert [command[1] for command in called] == ["-c", "-c"]  # neither ppo nor a report


def test_the_report_takes_the_runs_that_are_there_in_the_order_of_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[list[str]] = []
    monkeypatch.setattr(subprocess, "call", lambda command: called.append(command) or 0)
    for name in ("ppo", "human", "zero_shot"):
        (tmp_path / name).mkdir()
    assert demo.main(["ppo", "--root", str(tmp_path)]) == 0
    runs = [str(tmp_path / name) for name in ("human", "zero_shot", "ppo")]
    assert called[-1][1:] == ["report.py", "compare", *runs, "--out", f"{tmp_path}/report"]


def test_a_run_is_run_until_a_command_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[list[str]] = []
    monkeypatch.setattr(baselines, "main", lambda arguments: called.append(arguments) or 2)
    assert (
        demo.run_one(
            [["alignsum.commands.baselines.py", "a"], ["alignsum.commands.baselines.py", "b"]]
        )
        == 2
    )
    assert called == [["a"]]
    monkeypatch.setattr(
        simulated_annotators, "main", lambda arguments: called.append(arguments) or 0
    )
    assert demo.run_one([["-m", "collecting.simulated_annotators", "c", "d"]]) == 0
    assert called[1:] == [["c", "d"]]


@pytest.mark.slow
@pytest.mark.parametrize("source", ["mini", "real"])
def test_one_command_makes_the_whole_table(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    if source == "real":
        source = os.environ.get("DIALOGSUM_DIR", str(ROOT.parent / "shared" / "data" / "dialogsum"))
        if not Path(source).is_dir():
            pytest.skip(f"no DialogSum in {source}; name its folder in DIALOGSUM_DIR")
    assert demo.main(["--quick", "--source", source, "--root", str(tmp_path)]) == 0
    page = (tmp_path / "report" / "comparison.md").read_text()
    lines = [line.strip("|").split("|") for line in page.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line] for line in lines]
    titles = cells[0]
    rows = {row[0]: dict(zip(titles, row, strict=False)) for row in cells}
    runs = set(demo.RUNS) - (set() if source == "mini" else set(demo.FEEDBACK))
    assert runs < set(rows)
    for name in runs - {"reward", "reward_feedback"}:
        assert int(rows[name]["n"]) > 0
        assert " to " in rows[name]["ROUGE-1"]
        costs = [rows[name][title] for title in ("trained weights", "time", "memory")]
        assert (costs == ["-", "-", "-"]) == (name in demo.BASELINES)
    for name in runs & set(demo.METHODS):
        assert RunFolder(tmp_path / name).read_summary()["peak_memory_bytes"] > 0
