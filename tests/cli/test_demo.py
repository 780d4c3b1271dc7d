"""The demo: its steps, what it skips, and what it prints."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from alignsum import real_text
from alignsum.commands import demo
from alignsum.overlays import prepare_configs
from common.run_folder import RunFolder
from datamodules.rankings import read_answers

ROOT = Path(__file__).parents[2]


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Record the commands; each writes the file that marks its step as finished."""
    commands: list[list[str]] = []

    def run_one(given: Sequence[Sequence[str]]) -> int:
        commands.extend(map(list, given))
        for command in given:
            if "--run_dir" in command:
                folder = RunFolder(command[command.index("--run_dir") + 1])
                folder.merge_predictions([{"id": "a"}])
        return 0

    monkeypatch.setattr(demo, "run_one", run_one)
    return commands


def test_steps_read_what_earlier_steps_have_written() -> None:
    made: set[str] = set()
    for name in demo.STEPS:
        for part in (part for command in demo.make_commands(name, "x") for part in command):
            if part.endswith(("/export", "answers.jsonl")) and name != "feedback":
                assert part.split("/")[1] in made
        made.add(name)
    assert set(demo.TABLE) == set(demo.STEPS) - {"feedback"}


def test_a_run_is_fitted_and_tested_with_the_same_settings() -> None:
    fit, test = demo.make_commands("ppo", "my runs", seed=3)
    assert fit[:2] == ["train", "fit"]
    assert test[:2] == ["train", "test"]
    assert fit[2:] == test[2:]
    assert fit[fit.index("--seed_everything") + 1] == "3"
    assert "my runs/lora/export" in fit
    assert "configs/overlays/rollouts.yaml" in fit  # for the report's token view


def test_every_overlay_has_a_section_for_every_method(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    commands = [demo.make_commands(name, "runs/x", quick=True) for name in demo.METHODS]
    commands += [real_text.make_commands(name, "runs/x", rows=9) for name in real_text.METHODS]
    for command in (command for step in commands for command in step):
        prepare_configs(command[2:])  # refuses an overlay without an entry for the class


def test_real_steps_leave_out_what_has_no_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(real_text, "find_spec", lambda name: object())
    for name in ("DIALOGSUM_DIR", "DIALSUMMEVAL_DIR", "DYNAHATE_DIR"):
        monkeypatch.delenv(name, raising=False)
    everywhere = real_text.choose(None)
    assert "lora" in everywhere
    assert not {"hate", "judge", "rloo"} & {*everywhere}
    monkeypatch.setenv("DYNAHATE_DIR", str(tmp_path))
    assert "hate" in real_text.choose(None)
    with pytest.raises(ValueError, match="judge needs DIALSUMMEVAL_DIR"):
        real_text.choose(["judge"])
    monkeypatch.setattr(real_text, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="make real"):
        real_text.choose(["lora"])
    for real in ([], ["--real"]):
        assert demo.main([*real, "--only", "lorra"]) == 2
        assert "did you mean lora" in capsys.readouterr().err


def test_judgments_become_rankings_of_two_halves(tmp_path: Path) -> None:
    marks = ("consistency", "relevance", "fluency", "coherence")
    rows = [
        {
            "id": str(number), "dialogue": "| Ann: Hi | Bo: Bye", "summary": text,
            "annotations": [dict.fromkeys(marks, mark)] * 3, "model_id": system,
        }
        for number in range(10)
        for text, mark, system in (("Best.", 5, "A"), ("Worst.", 1, "B"), ("Best.", 3, "C"))
    ]  # fmt: skip
    source = tmp_path / "human_judgment.jsonl"
    source.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    real_text.write_judgments(source, tmp_path)
    splits = {
        (half, split): read_answers(tmp_path / half / f"{split}.jsonl")
        for half in "ab"
        for split in ("train", "validation", "test")
    }
    answer = splits["a", "train"][0]
    assert (answer.dialogue, answer.completions) == ("Ann: Hi\nBo: Bye", ("Best.", "Worst."))
    assert answer.ranks == (1, 2)
    ids = {place: {each.id for each in answers} for place, answers in splits.items()}
    assert ids["a", "test"] == ids["b", "train"] | ids["b", "validation"]
    assert not ids["a", "test"] & (ids["a", "train"] | ids["a", "validation"])


def test_finished_steps_are_skipped_unless_they_are_to_be_repeated(
    called: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--root", str(tmp_path), "--only", "lora", "zero_shot"]
    assert demo.main(arguments) == 0
    steps = [command for command in called if command[0] == "train"]
    assert [Path(command[command.index("--run_dir") + 1]).name for command in steps] == [
        "zero_shot", "lora", "lora",
    ]  # fmt: skip
    said = capsys.readouterr().out
    assert "1 of 2: zero_shot" in said
    assert max(map(len, said.splitlines())) <= 100 + len(str(tmp_path))
    called.clear()
    assert demo.main(arguments) == 0
    assert [command[0] for command in called] == ["alignsum.commands.compare"]
    called.clear()
    assert demo.main([*arguments, "--overwrite"]) == 0
    assert len(called) == 4


def test_a_failed_step_ends_the_demo_and_shows_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = {"zero_shot": [["train", "fit", "--config", "configs/nothing.yaml"]]}
    monkeypatch.setattr(demo, "make_commands", lambda name, *_: steps[name])
    assert demo.main(["--root", str(tmp_path), "--only", "zero_shot", "lora"]) == 2
    said = capsys.readouterr().err
    assert "zero_shot failed" in said
    assert "configs/nothing.yaml" in said  # the reason, from the step's log


@pytest.mark.slow
def test_one_command_makes_the_whole_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert demo.main(["--quick", "--root", str(tmp_path), "--feedback"]) == 0
    page = (tmp_path / "report" / "comparison.md").read_text()
    assert all(f"| {run} " in page for run in demo.TABLE)
    assert any(RunFolder(tmp_path / "ppo").rollouts.iterdir())
    for name in demo.METHODS:
        assert RunFolder(tmp_path / name).read_summary()["peak_memory_bytes"] > 0
