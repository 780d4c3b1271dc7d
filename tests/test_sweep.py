"""Sweeps: the plan, what is run again and what is not, and tiny ones run for real."""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import sweeping.runs
import train
from alignsum import __main__ as report
from alignsum.commands import sweep
from common.run_folder import RunFolder
from sweeping.plan import Plan, read_plan, repeat, to_arguments
from sweeping.processes import call, find_parse_errors, parse_here

ROOT = Path(__file__).parent.parent
SWEEPS = sorted((ROOT / "configs" / "sweeps").glob("*.yaml"))


def write_plan(folder: Path, **content: Any) -> Path:
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


# The plan ---------------------------------------------------------------------------------------


def test_the_product_in_the_order_of_the_file(tmp_path: Path) -> None:
    axes = {
        "rank": {4: {"model.r": 4}, "r16": {"model": {"r": 16, "init_args": {"alpha": 32}}}},
        "rate": {"slow": None, "fast": ["--model.optimizer.init_args.lr", 0.001]},
    }
    exclude = [{"rank": "r16", "rate": "slow"}]
    plan = read_plan(write_plan(tmp_path, axes=axes, exclude=exclude))
    assert plan.commands == ["fit", "test"]
    fast = ["--model.optimizer.init_args.lr", "0.001"]
    assert [tuple(run) for run in plan.combinations] == [
        ("4-slow", {"rank": "4", "rate": "slow"}, ["--model.r=4"]),
        ("4-fast", {"rank": "4", "rate": "fast"}, ["--model.r=4", *fast]),
        (
            "r16-fast", {"rank": "r16", "rate": "fast"},
            ["--model.r=16", "--model.init_args.alpha=32", *fast],
        ),
    ]  # fmt: skip
    for exclude, left in (
        ([{"rank": 4}], ["r16-slow", "r16-fast"]),
        ([{"rank": [4, "r16"], "rate": ["fast"]}], ["4-slow", "r16-slow"]),
        ({"rank": 4, "rate": "slow"}, ["4-fast", "r16-slow", "r16-fast"]),
    ):
        plan = read_plan(write_plan(tmp_path, axes=axes, exclude=exclude))
        assert [run.name for run in plan.combinations] == left


def test_every_combination_once_for_each_seed(tmp_path: Path) -> None:
    plan = read_plan(write_plan(tmp_path, axes={"x": {"a": {"r": 1}, "b": {}}}))
    assert [tuple(run) for run in repeat(plan, [7, 1]).combinations] == [
        ("a-seed7", {"x": "a", "seed": "7"}, ["--r=1", "--seed_everything=7"]),
        ("b-seed7", {"x": "b", "seed": "7"}, ["--seed_everything=7"]),
        ("a-seed1", {"x": "a", "seed": "1"}, ["--r=1", "--seed_everything=1"]),
        ("b-seed1", {"x": "b", "seed": "1"}, ["--seed_everything=1"]),
    ]
    with pytest.raises(ValueError, match="each once, got 1,2,1"):
        repeat(plan, [1, 2, 1])
    plan = read_plan(write_plan(tmp_path, axes={"x": {"a": {"seed_everything": 1}}}))
    with pytest.raises(ValueError, match="--seed_everything is set twice"):
        repeat(plan, [1, 2])


@pytest.mark.parametrize(
    ("choice", "arguments"),
    [
        ({}, []),
        ({"a.b": True, "c": None, "d": 1e-3}, ["--a.b=true", "--c=null", "--d=0.001"]),
        ({"a": {"b": {"c": [1, "x"]}, "d": "text: {y}"}}, ['--a.b.c=[1, "x"]', "--a.d=text: {y}"]),
        ({"a": {"class_path": "B", "init_args": {"c": 1}}},
         ['--a={"class_path": "B", "init_args": {"c": 1}}']),
        ({"a": {"init_args": {"c": 1}}, "e": {}}, ["--a.init_args.c=1", "--e={}"]),
        (["--x", 3], ["--x", "3"]),
    ],
)  # fmt: skip
def test_choices_as_arguments(choice: Any, arguments: list[str]) -> None:
    assert to_arguments(choice) == arguments


GOOD = {"x": {"one": {"a": 1}, "two": {"a": 2}}}


@pytest.mark.parametrize(
    ("content", "messages"),
    [
        ({}, ["mapping with 'axes'"]),
        ({"axes": [1]}, ["mapping with 'axes'"]),
        ({"axes": {}}, ["mapping with 'axes'"]),
        ({"axes": {"x": {}, "y": 3}, "runs": 3, "commands": 3, "exclude": [{"y": "a"}, 3]},
         ["unknown entry runs", "commands must be", "axis x must be a mapping of named choices",
          "axis y must", "got {'y': 'a'}", "got 3"]),
        ({"axes": {"x": {"a b": 1, True: {}, "..": {}}}},
         ["choice a b: its name", "choice a b: it must be a mapping of settings or a list",
          "choice True: its name", "choice ..: its name"]),
        ({"axes": {"x": {"a": {"run_dir": "y"}, "b": ["--overwrite=1"], "c": {"ckpt_path": "z"}}}},
         ["choice a: --run_dir", "choice b: --overwrite", "choice c: --ckpt_path"]),
        ({"axes": GOOD, "exclude": [{"x": ["one", "three"]}, {"y": "one"}]},
         ["got {'x': ['one', 'three']}", "got {'y': 'one'}"]),
        ({"axes": GOOD, "exclude": [{"x": "one"}, {"x": "two"}]}, ["no combination is left"]),
        ({"axes": {"x": {"a-b": {}, "a": {}}, "y": {"c": {}, "b-c": {}}}},
         ["a-b-c is the name of two folders"]),
        ({"axes": {"x": {"report": {}}}}, ["report is the name of two folders"]),
        ({"axes": {"x": {"a": {"model.r": 1}}, "y": {"b": {"model": {"init_args": {"r": 2}}}}}},
         ["--model.r is set twice in one combination"]),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_plan(content: Any, messages: list[str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"plan\.yaml") as caught:
        read_plan(write_plan(tmp_path, **content))
    for message in messages:
        assert message in str(caught.value)


def test_a_checkpoint_may_be_named_where_nothing_is_trained(tmp_path: Path) -> None:
    axes = {"x": {"a": {"ckpt_path": "best.ckpt"}}}
    plan = read_plan(write_plan(tmp_path, commands=["test"], axes=axes))
    assert plan.combinations[0].arguments == ["--ckpt_path=best.ckpt"]


def test_a_plan_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("axes: {")
    for name in ("bad.yaml", "none.yaml"):
        with pytest.raises(ValueError, match=f"{name} cannot be read"):
            read_plan(tmp_path / name)


# What is run ------------------------------------------------------------------------------------


class Programs:
    """Stands in for the processes: does what train.py does to a run folder, and notes the calls."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.fails: dict[str, int] = {}

    def __call__(self, program: str, *arguments: str) -> int:
        if program == "report.py":
            self.calls.append(["report", *(Path(argument).name for argument in arguments[1:-2])])
            return 0
        folder = RunFolder(arguments[arguments.index("--run_dir") + 1])
        command = arguments[0]
        self.calls.append([command, folder.path.name, *arguments[-2:]])
        if command == "fit":
            folder.checkpoints.mkdir(parents=True, exist_ok=True)
            (folder.checkpoints / "last.ckpt").touch()
        if code := self.fails.get(f"{command} {folder.path.name}", 0):
            return code
        folder.update_summary(**({"measured": "fit"} if command == "fit" else {"test_seconds": 1}))
        return 0


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> Programs:
    made = Programs()
    monkeypatch.setattr(sweeping.runs, "call", made)
    monkeypatch.setattr(sweep, "call", made)
    monkeypatch.setattr(sweep, "find_parse_errors", lambda commands: [""] * len(commands))
    return made


OVERWRITE, RESUME = ["--overwrite", "true"], ["--resume", "auto"]


def test_the_same_call_goes_on_where_it_stopped(
    tmp_path: Path, programs: Programs, caplog: pytest.LogCaptureFixture
) -> None:
    axes = {"x": {"a": {"r": 1}, "b": {"r": 2}, "c": {"r": 3}}}
    command = [
        str(write_plan(tmp_path, axes=axes)),
        "--out",
        str(tmp_path / "out"),
        "--data.k",
        "1",
    ]
    programs.fails = {"fit a": 3, "test b": 4}
    assert sweep.main(command) == 1
    assert programs.calls == [
        ["fit", "a", *OVERWRITE],
        ["fit", "b", *OVERWRITE], ["test", "b", *OVERWRITE],
        ["fit", "c", *OVERWRITE], ["test", "c", *OVERWRITE],
        ["report", "a", "b", "c"],
    ]  # fmt: skip
    assert "a failed with exit code 3" in caplog.text
    assert "b failed with exit code 4" in caplog.text
    assert "c failed" not in caplog.text
    programs.fails = {}
    programs.calls.clear()
    assert sweep.main(command) == 0
    assert programs.calls == [
        ["fit", "a", *RESUME], ["test", "a", *OVERWRITE],
        ["test", "b", *OVERWRITE],
        ["report", "a", "b", "c"],
    ]  # fmt: skip
    programs.calls.clear()
    assert sweep.main(command) == 0
    assert programs.calls == [["report", "a", "b", "c"]]
    RunFolder(tmp_path / "out" / "b").clear()
    assert sweep.main(command) == 0
    assert programs.calls[1:3] == [["fit", "b", *OVERWRITE], ["test", "b", *OVERWRITE]]
    programs.calls.clear()
    assert sweep.main([*command, "--overwrite", "true"]) == 0
    assert len(programs.calls) == 7
    assert not any(call[-2:] == RESUME for call in programs.calls)


def test_seeds_can_be_added_by_a_later_call(
    tmp_path: Path, programs: Programs, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = str(write_plan(tmp_path, axes={"x": {"a": {"r": 1}}}))
    command = [plan, "--out", str(tmp_path / "out"), "--seeds"]
    assert sweep.main([*command, "1"]) == 0
    assert [call[:2] for call in programs.calls[:-1]] == [["fit", "a-seed1"], ["test", "a-seed1"]]
    programs.calls.clear()
    assert sweep.main([*command, "1,2"]) == 0
    assert [call[:2] for call in programs.calls[:-1]] == [["fit", "a-seed2"], ["test", "a-seed2"]]
    assert programs.calls[-1] == ["report", "a-seed1", "a-seed2"]
    with pytest.raises(SystemExit):
        sweep.main([*command, "1,b"])
    assert "invalid read_seeds value: '1,b'" in capsys.readouterr().err


def test_runs_with_other_settings_are_never_taken_for_these(
    tmp_path: Path, programs: Programs, caplog: pytest.LogCaptureFixture
) -> None:
    config = tmp_path / "base.yaml"
    config.write_text("trainer: {}")
    out = tmp_path / "out"
    RunFolder(out / "c").update_summary(seed=1)

    def run(choices: dict[str, Any], *options: str) -> int:
        plan = write_plan(tmp_path, commands=["test"], axes={"x": choices})
        caplog.clear()
        programs.calls.clear()
        return sweep.main([str(plan), "--config", str(config), "--out", str(out), *options])

    assert run({"a": {"r": 1}, "b": {"r": 2}}) == 0
    assert run({"a": {"r": 1}, "b": {"r": 2}, "d": {"r": 4}}) == 0  # more of them is no change
    assert [call[1] for call in programs.calls[:-1]] == ["d"]
    assert run({"a": {"r": 1}, "b": {"r": 3}, "c": {}}) == 2
    assert programs.calls == []
    assert "nothing was started" in caplog.text
    assert "/b was run with other arguments" in caplog.text
    assert "--r=2" in caplog.text
    assert "/c holds a run that is not of this sweep" in caplog.text
    assert "/a " not in caplog.text
    config.write_text("trainer: {devices: 1}")
    assert run({"a": {"r": 1}}) == 2
    assert "/a was run with other configs" in caplog.text
    assert run({"a": {"r": 1}}, "--overwrite", "true") == 0
    assert run({"a": {"r": 1}}) == 0
    assert programs.calls == [["report", "a"]]
    assert run({"a": {"r": 1}}, "--data.k", "1") == 2


def test_a_broken_state_and_the_sweeps_own_options(
    tmp_path: Path, programs: Programs, caplog: pytest.LogCaptureFixture
) -> None:
    command = [str(write_plan(tmp_path, axes=GOOD)), "--out", str(tmp_path)]
    assert sweep.main([*command, "--run_dir", "x"]) == 2
    assert "--run_dir" in caplog.text
    (tmp_path / "sweep.json").write_text("{")
    assert sweep.main(command) == 2
    assert "sweep.json is not JSON" in caplog.text
    assert programs.calls == []


def test_list_prints_the_commands_and_runs_nothing(
    tmp_path: Path, programs: Programs, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = write_plan(tmp_path, axes={"x": {"a": {"prompt": "with space"}}})
    assert sweep.main([str(plan), "--config", "c.yaml", "--out", "o", "--list"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "a",
        "  python train.py fit --config c.yaml '--prompt=with space' --run_dir o/a",
        "  python train.py test --config c.yaml '--prompt=with space' --run_dir o/a",
    ]
    assert programs.calls == []


# Real commands ----------------------------------------------------------------------------------


def in_process(program: str, *arguments: str) -> int:
    """Call a program without the seconds that a process takes to start."""
    try:
        return (report.main(arguments) if program == "report.py" else train.main(arguments)) or 0
    except SystemExit as stop:
        return int(stop.code or 0)


@pytest.fixture
def base(t5: str, roberta: str, tmp_path: Path) -> list[str]:
    rows = [
        {"id": f"r{i}", "dialogue": f"#Person1#: Is {i} free?", "summary": f"{i} is free."}
        for i in range(6)
    ]
    (tmp_path / "data").mkdir()
    for split, part in (("train", rows[:4]), ("validation", rows[4:]), ("test", rows[4:])):
        text = "".join(json.dumps(row) + "\n" for row in part)
        (tmp_path / "data" / f"{split}.jsonl").write_text(text)
    return [
        "--config", str(ROOT / "configs" / "in_context.yaml"), "--model.backbone", t5,
        "--toxicity.model", roberta, "--data.source", str(tmp_path / "data"),
        "--trainer.precision", "32-true", "--trainer.accelerator", "cpu",
        "--model.decoding.max_new_tokens", "8", "--out", str(tmp_path / "out"),
    ]  # fmt: skip


def test_two_by_two_with_a_failing_choice(
    base: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    for module in (sweep, sweeping.runs):
        monkeypatch.setattr(module, "call", in_process)
    monkeypatch.setattr(sweep, "find_parse_errors", parse_here)
    style = {
        "flan": {"data.prompt": "Flan"},
        "own": {
            "data.prompt": {"class_path": "Template", "init_args": {"template": "{dialogue}?"}}
        },
    }
    shots = {
        "two": {"data": {"shots": 2, "examples": "SimilarExamples"}},
        "many": {"data.shots": 9},
    }
    plan = write_plan(tmp_path, commands=["test"], axes={"style": style, "shots": shots})
    assert sweep.main([str(plan), *base]) == 1
    assert "flan-many failed with exit code 2" in caplog.text
    assert "own-many failed with exit code 2" in caplog.text
    out = tmp_path / "out"
    table = (out / "report" / "comparison.md").read_text()
    assert "| flan-two | 2 |" in table
    assert "| own-two | 2 |" in table
    assert "own-many: there is no such folder" in table
    data = RunFolder(out / "own-two").read_summary()["data"]["test"]
    assert data == {
        "rows": 2, "shortened": 0, "shots_asked": 2, "shots_fitted_mean": 2.0,
        "shots_fitted": {"2": 2},
    }  # fmt: skip
    config = yaml.safe_load(RunFolder(out / "own-two").config.read_text())
    assert config["data"]["init_args"]["prompt"]["init_args"]["template"] == "{dialogue}?"
    before = (out / "own-two" / "predictions.jsonl").stat().st_mtime_ns
    assert sweep.main([str(plan), *base]) == 1
    assert (out / "own-two" / "predictions.jsonl").stat().st_mtime_ns == before
    typo = write_plan(tmp_path, commands=["test"], axes={"x": {"a": {"data.shotz": 1}, "b": {}}})
    assert sweep.main([str(typo), *base]) == 2
    assert "a: " in caplog.text
    assert "shotz" in caplog.text
    assert not (out / "b").exists()


def test_parse_errors_come_from_another_process() -> None:
    command = ["test", "--config", str(ROOT / "configs" / "in_context.yaml")]
    good, bad = find_parse_errors([command, [*command, "--data.shots=many"]])
    assert good == ""
    assert "shots" in bad
    assert "many" in bad


MINI = ROOT / "configs" / "overlays" / "mini.yaml"
BEHIND = {
    "examples": ["in_context.yaml"],
    "lora_ranks": ["lora.yaml"],
    "ppo_betas": ["ppo.yaml", MINI],
    "ppo_estimators": ["ppo.yaml", MINI],
    "ppo_policies": ["ppo.yaml", MINI],
    "prompting": ["in_context.yaml"],
    "virtual_tokens": ["soft_prompt.yaml"],
}
"""The configs that each shipped sweep is written for."""


@pytest.mark.parametrize("file", SWEEPS, ids=lambda file: file.stem)
def test_shipped_sweeps_parse(file: Path) -> None:
    config = [f"--config={ROOT / 'configs' / name}" for name in BEHIND[file.stem]]
    plan: Plan = read_plan(file)
    errors = parse_here([[plan.commands[0], *config, *run.arguments] for run in plan.combinations])
    assert errors == [""] * len(plan.combinations)
    assert len(errors) >= 2


def test_the_shipped_sweeps_are_found() -> None:
    assert {file.stem for file in SWEEPS} == set(BEHIND)


def test_estimators_are_compared_by_equal_rollouts_and_steps() -> None:
    plan = read_plan(ROOT / "configs" / "sweeps" / "ppo_estimators.yaml")
    ppo, *others = plan.combinations
    assert ppo.arguments == []
    of_ppo = yaml.safe_load(MINI.read_text())["per_model"]["PPOPolicy"]
    assert "samples" not in of_ppo["model"]["init_args"]["ppo"]
    for run in others:
        values = dict(argument.split("=") for argument in run.arguments)
        rollouts = int(values["--data.batch_size"]) * int(values["--model.ppo.samples"])
        assert rollouts == of_ppo["data"]["init_args"]["batch_size"]
        assert not any("trainer" in name or "minibatch" in name for name in values)


@pytest.mark.slow
def test_a_sweep_in_processes_of_its_own(base: list[str], tmp_path: Path) -> None:
    axes = {"rank": {"r1": {"model.r": 1}, "r0": {"model.r": 0}}}
    plan = write_plan(tmp_path, axes=axes)
    lora = ["--config", str(ROOT / "configs" / "lora.yaml"), *base[2:], "--trainer.max_epochs=1"]
    assert call("sweep.py", str(plan), *lora) == 1
    summary = RunFolder(tmp_path / "out" / "r1").read_summary()
    assert summary["measured"] == "fit"
    assert summary["metrics"]["test/rouge1"]["n"] == 2
    assert json.loads((tmp_path / "out" / "sweep.json").read_text())["r0"]["complete"] is False


# Processes --------------------------------------------------------------------------------------


PROGRAM = """
import os, signal, sys, time
folder, number = sys.argv[1], int(sys.argv[2])
def stop(*_):
    time.sleep(0.6)  # saving takes its time
    open(folder + "/saved", "w").close()
    os._exit(7)
signal.signal(number, stop)
open(folder + "/pid.part", "w").write(str(os.getpid()))
os.rename(folder + "/pid.part", folder + "/pid")
time.sleep(60)
"""


@pytest.fixture
def as_main() -> Iterator[None]:
    """Take a SIGTERM as sweep.py does when it is the program."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("number", "both", "stopped"),
    [(signal.SIGINT, True, KeyboardInterrupt), (signal.SIGTERM, False, SystemExit)],
)
def test_a_stopped_sweep_lets_its_run_save(
    number: signal.Signals, both: bool, stopped: type, tmp_path: Path, as_main: None
) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    before = signal.getsignal(number)
    if number == signal.SIGINT:  # which a shell has its background jobs pass over
        signal.signal(number, signal.default_int_handler)

    def stop() -> None:
        while not (tmp_path / "pid").exists():
            time.sleep(0.01)
        if both:  # as a terminal does with Ctrl-C
            os.kill(int((tmp_path / "pid").read_text()), number)
        os.kill(os.getpid(), number)

    threading.Thread(target=stop, daemon=True).start()
    try:
        with pytest.raises(stopped):
            call(str(tmp_path / "program.py"), str(tmp_path), str(int(number)))
    finally:
        signal.signal(number, before)
    assert (tmp_path / "saved").exists()


def test_exit_codes_are_given_on(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text("import sys; sys.exit(len(sys.argv))")
    assert call(str(tmp_path / "program.py"), "a", "b") == 3
