"""Sweeps: the plan, which runs are repeated and which are not, and small ones run for real."""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

import train
from alignsum.commands import sweep
from alignsum.sweep_plan import Plan, Range, flatten, read_plan
from common.run_folder import RunFolder

ROOT = Path(__file__).parent.parent
SWEEPS = sorted((ROOT / "configs" / "sweeps").glob("*.yaml"))


def write_plan(folder: Path, **content: Any) -> str:
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return str(path)


# The plan ---------------------------------------------------------------------------------------


def test_a_grid_in_the_order_of_the_file_and_seed_by_seed(tmp_path: Path) -> None:
    axes = {
        "rank": {4: {"model.r": 4}, "r16": {"model": {"r": 16, "init_args": {"alpha": 32}}}},
        "style": {"plain": None, "own": {"data.prompt": {"class_path": "X", "init_args": {}}}},
    }
    plan = read_plan(Path(write_plan(tmp_path, axes=axes)))
    assert plan.commands == ["fit", "test"]
    own = '--data.prompt={"class_path": "X", "init_args": {}}'
    r16 = ["--model.r=16", "--model.init_args.alpha=32"]
    assert [(plan.name(each), plan.arguments(each)) for each in plan.list_grid()] == [
        ("4-plain", ["--model.r=4"]),
        ("4-own", ["--model.r=4", own]),
        ("r16-plain", r16),
        ("r16-own", [*r16, own]),
    ]
    seeded = plan.list_grid([7, 1])
    assert [plan.name(each) for each in seeded[3:5]] == ["r16-own-seed7", "4-plain-seed1"]
    assert plan.arguments(seeded[4]) == ["--seed_everything=1", "--model.r=4"]
    examples = [plan.name(each) for each in plan.list_examples()]
    assert examples == ["4-plain", "r16-own"]  # every choice once


def test_a_drawn_trial_is_named_after_its_numbers() -> None:
    ranges = {"model.optimizer.lr": Range(1e-5, 1e-3, log=True), "model.r": Range(1, 64)}
    plan = Plan(axes={"x": {"a": {"b": "c"}}}, ranges=ranges, sampler="random")
    params = {"x": "a", "model.optimizer.lr": 0.000123456, "model.r": 8}
    assert plan.name(params) == "a-lr0.000123-r8"
    assert plan.arguments(params) == ["--b=c", "--model.optimizer.lr=0.000123", "--model.r=8"]


@pytest.mark.parametrize(
    ("settings", "flat"),
    [
        ({"a.b": True, "c": None}, {"a.b": True, "c": None}),
        ({"a": {"b": {"c": [1, "x"]}, "d": 2}}, {"a.b.c": [1, "x"], "a.d": 2}),
        ({"a": {"class_path": "B", "init_args": {"c": 1}}},
         {"a": {"class_path": "B", "init_args": {"c": 1}}}),
        ({"a": {"init_args": {"c": 1}}, "e": {}}, {"a.init_args.c": 1, "e": {}}),
    ],
)  # fmt: skip
def test_nested_settings(settings: dict[str, Any], flat: dict[str, Any]) -> None:
    assert flatten(settings) == flat


GOOD = {"x": {"one": {"a": 1}, "two": {"a": 2}}}
RANGE = {"a": {"low": 1, "high": 2}}


@pytest.mark.parametrize(
    ("content", "messages"),
    [
        ([1], ["must be a mapping"]),
        ({}, ["neither axes nor ranges"]),
        ({"axes": GOOD, "runs": 3}, ["runs"]),
        ({"axes": GOOD, "sampler": "sobol"}, ["sampler", "sobol"]),
        ({"axes": GOOD, "commands": ["test", "fit"]}, ["commands must be"]),
        ({"axes": {"x": 3}}, ["axes", "3"]),
        ({"axes": {"x": {"a b": {}, "..": {}}}}, ["'a b' cannot name", "'..' cannot name"]),
        ({"axes": {"x": {"a": {"run_dir": "y"}, "c": {"ckpt_path": "z"}}}},
         ["the sweep itself sets", "--run_dir", "--ckpt_path"]),
        ({"axes": {"x": {"a": {"model.r": 1}}, "y": {"b": {"model": {"init_args": {"r": 2}}}}}},
         ["two axes set model.r"]),
        ({"ranges": RANGE}, ["a grid cannot enumerate ranges"]),
        ({"axes": GOOD, "ranges": RANGE, "sampler": "tpe"}, ["two axes set a"]),
        ({"ranges": {"a": {"low": 1}}, "sampler": "tpe"}, ["high"]),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_plan(content: Any, messages: list[str], tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match=r"plan\.yaml") as caught:
        read_plan(path)
    for message in messages:
        assert message in str(caught.value)


def test_a_checkpoint_may_be_named_where_nothing_is_trained() -> None:
    plan = Plan(axes={"x": {"a": {"ckpt_path": "best.ckpt"}}}, commands=["test"])
    assert plan.arguments({"x": "a"}) == ["--ckpt_path=best.ckpt"]


# What is run ------------------------------------------------------------------------------------


class Programs:
    """Stands in for train.py: does what it does to a run folder, and records the calls."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.fails: dict[str, int] = {}
        self.compared: list[str] = []

    def __call__(self, arguments: list[str]) -> int:
        folder = RunFolder(arguments[arguments.index("--run_dir") + 1])
        command = arguments[0]
        self.calls.append([command, folder.path.name, *arguments[-2:]])
        if command == "fit":
            folder.checkpoints.mkdir(parents=True, exist_ok=True)
            (folder.checkpoints / "last.ckpt").touch()
            folder.metrics_csv.write_text("step,val/rouge1\n1,0.2\n2,0.3\n3,\n")
        if code := self.fails.get(f"{command} {folder.path.name}", 0):
            if code == -1:
                raise KeyboardInterrupt
            return code
        folder.update_summary(**({"measured": "fit"} if command == "fit" else {"test_seconds": 1}))
        return 0

    def compare(self, folders: list[str], out: Path) -> int:
        self.compared = [Path(folder).name for folder in folders]
        return 0


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> Programs:
    made = Programs()
    monkeypatch.setattr(sweep, "run_train", made)
    monkeypatch.setattr(sweep, "compare", made.compare)
    monkeypatch.setattr(sweep, "find_parse_error", lambda arguments: "")
    return made


OVERWRITE, RESUME = ["--overwrite", "true"], ["--resume", "auto"]


def read_trials(folder: Path) -> list[tuple[str, str, float | None]]:
    study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{folder / 'sweep.db'}")
    return [(t.user_attrs["run"], t.state.name, t.value) for t in study.trials]


def test_the_same_command_continues_where_it_stopped(
    tmp_path: Path, programs: Programs, caplog: pytest.LogCaptureFixture
) -> None:
    axes = {"x": {"a": {"r": 1}, "b": {"r": 2}, "c": {"r": 3}}}
    out = tmp_path / "out"
    command = [write_plan(tmp_path, axes=axes), "--out", str(out), "--data.k", "1"]
    programs.fails = {"fit a": 3, "test b": 4, "fit c": -1}
    assert sweep.main(command) == 130
    assert programs.compared == []
    programs.fails.pop("fit c")
    programs.calls.clear()
    assert sweep.main(command) == 1
    assert programs.calls == [
        ["fit", "a", *RESUME],
        ["test", "b", *OVERWRITE],
        ["fit", "c", *RESUME], ["test", "c", *OVERWRITE],
    ]  # fmt: skip
    assert "a failed with exit code 3" in caplog.text
    assert "b failed with exit code 4" in caplog.text
    programs.fails = {}
    programs.calls.clear()
    assert sweep.main(command) == 0
    assert programs.calls == [
        ["fit", "a", *RESUME], ["test", "a", *OVERWRITE],
        ["test", "b", *OVERWRITE],
    ]  # fmt: skip
    programs.calls.clear()
    assert sweep.main(command) == 0
    assert programs.calls == []
    assert programs.compared == ["a", "b", "c"]
    assert read_trials(out) == [
        ("a", "FAIL", None), ("b", "FAIL", None), ("c", "FAIL", None),
        ("a", "FAIL", None), ("b", "FAIL", None), ("c", "COMPLETE", 0.3),
        ("a", "COMPLETE", 0.3), ("b", "COMPLETE", 0.3),
    ]  # fmt: skip
    RunFolder(out / "b").clear()
    assert sweep.main(command) == 0
    assert programs.calls == [["fit", "b", *OVERWRITE], ["test", "b", *OVERWRITE]]


def test_choices_and_seeds_can_be_added_by_a_later_call(
    tmp_path: Path, programs: Programs, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(axes: dict[str, Any], seeds: str) -> list[str]:
        programs.calls.clear()
        plan = write_plan(tmp_path, axes=axes)
        assert sweep.main([plan, "--out", str(tmp_path / "out"), "--seeds", seeds]) == 0
        return [call[1] for call in programs.calls if call[0] == "fit"]

    assert run({"x": {"a": {"r": 1}}}, "1") == ["a-seed1"]
    assert run({"x": {"a": {"r": 1}}}, "1,2") == ["a-seed2"]
    assert run({"x": {"b": {"r": 2}, "a": {"r": 1}}}, "1,2") == ["b-seed1", "b-seed2"]
    assert programs.compared == ["b-seed1", "a-seed1", "b-seed2", "a-seed2"]
    plan = write_plan(tmp_path, axes={"x": {"a": {"seed_everything": 1}}})
    for seeds in ("1,1", "1"):
        assert sweep.main([plan, "--seeds", seeds]) == 2
    with pytest.raises(SystemExit):
        sweep.main([plan, "--seeds", "1,b"])
    assert "invalid read_seeds value: '1,b'" in capsys.readouterr().err


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_search_draws_as_many_runs_as_its_plan_says(
    sampler: str, tmp_path: Path, programs: Programs
) -> None:
    ranges = {"lr": {"low": 1e-5, "high": 1e-3, "log": True}, "r": {"low": 1, "high": 64}}
    settings: dict[str, Any] = {"ranges": ranges, "sampler": sampler, "axes": {"x": {"a": {}}}}
    command = [write_plan(tmp_path, **settings, trials=3), "--out", str(tmp_path / "out")]
    assert sweep.main(command) == 0
    first = [call[1] for call in programs.calls if call[0] == "fit"]
    assert len(set(first)) == 3
    assert all(name.startswith("a-lr") for name in first)
    RunFolder(tmp_path / "out" / first[1]).clear()  # as if it had never ended
    programs.calls.clear()
    write_plan(tmp_path, **settings, trials=5)
    assert sweep.main(command) == 0
    second = [call[1] for call in programs.calls if call[0] == "fit"]
    assert second[0] == first[1]
    assert len({*first, *second}) == 5
    assert programs.compared == [*first, *second[1:]]


def test_a_search_prefers_what_was_better(tmp_path: Path, monkeypatch: Any) -> None:
    """TPE has to see the objective: after ten draws, most of its choices are the good one."""
    programs = Programs()

    def train_program(arguments: list[str]) -> int:
        code = programs(arguments)
        folder = RunFolder(arguments[arguments.index("--run_dir") + 1])
        lr = float(folder.path.name.partition("lr")[2])
        folder.metrics_csv.write_text(f"val/loss\n9\n{(lr - 0.8) ** 2}\n")
        return code

    monkeypatch.setattr(sweep, "run_train", train_program)
    monkeypatch.setattr(sweep, "compare", programs.compare)
    monkeypatch.setattr(sweep, "find_parse_error", lambda arguments: "")
    plan = write_plan(
        tmp_path, ranges={"lr": {"low": 0.0, "high": 1.0}}, sampler="tpe", trials=30,
        metric="val/loss", direction="minimize",
    )  # fmt: skip
    assert sweep.main([plan, "--out", str(tmp_path / "out")]) == 0
    drawn = [float(name.partition("lr")[2]) for name in programs.compared]
    assert sum(abs(lr - 0.8) < 0.15 for lr in drawn[10:]) > 0.6 * len(drawn[10:])


def test_runs_with_other_settings_are_refused(
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
        return sweep.main([plan, "--config", str(config), "--out", str(out), *options])

    assert run({"a": {"r": 1}, "b": {"r": 2}}) == 0
    assert run({"a": {"r": 1}, "b": {"r": 3}, "c": {}}) == 2
    assert programs.calls == []
    assert "nothing was started" in caplog.text
    assert "- b holds a run with other settings" in caplog.text
    assert "- c holds a run with other settings" in caplog.text
    assert "- a " not in caplog.text
    assert run({"a": {"r": 1}}, "--data.k", "1") == 2
    config.write_text("trainer: {devices: 1}")
    assert run({"a": {"r": 1}}) == 2
    RunFolder(out / "a").clear()
    assert run({"a": {"r": 1}}) == 0


def test_what_cannot_work_starts_nothing(
    tmp_path: Path, programs: Programs, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    command = [write_plan(tmp_path, axes=GOOD), "--out", str(tmp_path / "out")]
    assert sweep.main([*command, "--run_dir", "x"]) == 2
    assert "--run_dir" in caplog.text
    assert sweep.main([command[0], "--out", f"{command[0]}/x"]) == 2
    monkeypatch.setattr(
        sweep, "find_parse_error", lambda arguments: "no such key" * ("--a=2" in arguments)
    )
    assert sweep.main(command) == 2
    assert "two: no such key" in caplog.text
    (tmp_path / "out" / "sweep.db").write_text("{" * 200)
    assert sweep.main(command) == 2
    assert "sweep.db" in caplog.text
    assert programs.calls == []


def test_list_prints_the_commands_and_runs_nothing(
    tmp_path: Path, programs: Programs, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = write_plan(tmp_path, axes={"x": {"a": {"prompt": "with space"}}})
    out = str(tmp_path / "o")
    assert sweep.main([plan, "--config", "c.yaml", "--out", out, "--list"]) == 0
    shared = f"--config c.yaml '--prompt=with space' --run_dir {out}/a"
    assert capsys.readouterr().out.splitlines() == [
        "a", f"  python train.py fit {shared}", f"  python train.py test {shared}",
    ]  # fmt: skip
    assert not Path(out).exists()


KEY = "0123456789abcdef0123456789abcdef01234567"


def test_no_key_is_in_the_record_of_a_sweep(tmp_path: Path, programs: Programs) -> None:
    command = [write_plan(tmp_path, axes=GOOD), "--out", str(tmp_path / "out")]
    command += ["--trainer.logger.init_args.api_key", KEY]
    assert sweep.main(command) == sweep.main(command) == 0  # it recognises its own runs
    assert len(programs.calls) == 4
    assert KEY.encode() not in (tmp_path / "out" / "sweep.db").read_bytes()


# Real commands ----------------------------------------------------------------------------------


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


def in_process(arguments: list[str]) -> int:
    """Call train.py without the seconds that a process takes to start."""
    try:
        train.main(arguments)
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def parse_in_process(arguments: list[str], capsys: Any) -> str:
    code = in_process([*arguments, "--print_config"])
    found = capsys.readouterr().err
    return found or "refused" if code else ""


def test_two_by_two_with_a_failing_choice(
    base: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(sweep, "run_train", in_process)
    monkeypatch.setattr(sweep, "find_parse_error", lambda args: parse_in_process(args, capsys))
    template = {"class_path": "Template", "init_args": {"template": "{dialogue}?"}}
    axes = {
        "style": {"flan": {"data.prompt": "Flan"}, "own": {"data.prompt": template}},
        "shots": {
            "two": {"data": {"shots": 2, "examples": "SimilarExamples"}},
            "many": {"data.shots": 9},
        },
    }
    plan = write_plan(tmp_path, commands=["test"], metric="test/rouge1", axes=axes)
    assert sweep.main([plan, *base]) == 1
    assert "flan-many failed with exit code 2" in caplog.text
    assert "own-many failed with exit code 2" in caplog.text
    out = tmp_path / "out"
    table = (out / "report" / "comparison.md").read_text()
    assert "| flan-two | 2 |" in table
    assert "| own-two | 2 |" in table
    assert "not clearly" in " ".join(capsys.readouterr().out.split())
    config = yaml.safe_load(RunFolder(out / "own-two").config.read_text())
    assert config["data"]["init_args"]["prompt"]["init_args"]["template"] == "{dialogue}?"
    trials = {run: (state, value) for run, state, value in read_trials(out)}
    measured = RunFolder(out / "own-two").read_summary()["metrics"]["test/rouge1"]["value"]
    assert trials["own-two"] == ("COMPLETE", measured)
    assert trials["own-many"] == ("FAIL", None)
    before = (out / "own-two" / "predictions.jsonl").stat().st_mtime_ns
    assert sweep.main([plan, *base]) == 1
    assert (out / "own-two" / "predictions.jsonl").stat().st_mtime_ns == before
    typo = write_plan(tmp_path, commands=["test"], axes={"x": {"a": {"data.shotz": 1}, "b": {}}})
    assert sweep.main([typo, *base]) == 2
    assert "shotz" in caplog.text
    assert not (out / "b").exists()


MINI = ROOT / "configs" / "overlays" / "mini.yaml"
CONFIGS = {
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
def test_shipped_sweeps_parse(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = [f"--config={ROOT / 'configs' / name}" for name in CONFIGS[file.stem]]
    plan = read_plan(file)
    assert len(plan.list_grid()) >= 2
    for params in plan.list_examples():
        arguments = [plan.commands[0], *config, *plan.arguments(params)]
        assert parse_in_process(arguments, capsys) == ""


def test_estimators_are_compared_by_equal_rollouts_and_steps() -> None:
    plan = read_plan(ROOT / "configs" / "sweeps" / "ppo_estimators.yaml")
    ppo, *others = map(plan.arguments, plan.list_grid())
    assert ppo == []
    of_ppo = yaml.safe_load(MINI.read_text())["per_model"]["PPOPolicy"]
    assert "samples" not in of_ppo["model"]["init_args"]["ppo"]
    for arguments in others:
        values = dict(argument.split("=") for argument in arguments)
        rollouts = int(values["--data.batch_size"]) * int(values["--model.ppo.samples"])
        assert rollouts == of_ppo["data"]["init_args"]["batch_size"]
        assert not any("trainer" in name or "minibatch" in name for name in values)


@pytest.mark.slow
def test_a_sweep_in_processes_of_its_own(base: list[str], tmp_path: Path) -> None:
    axes = {"rank": {"r1": {"model.r": 1}, "r2": {"model.r": 2}}}
    plan = write_plan(tmp_path, axes=axes)
    lora = ["--config", str(ROOT / "configs" / "lora.yaml"), *base[2:], "--trainer.max_epochs=1"]
    assert sweep.find_parse_error(["fit", *lora[:-3], "--model.r=many"])
    assert sweep.main([plan, *lora]) == 0
    summary = RunFolder(tmp_path / "out" / "r1").read_summary()
    assert summary["measured"] == "fit"
    assert summary["metrics"]["test/rouge1"]["n"] == 2
    assert [run for run, state, _ in read_trials(tmp_path / "out")] == ["r1", "r2"]


# Processes --------------------------------------------------------------------------------------


PROGRAM = """
import os, signal, sys, time
folder, number = sys.argv[1], int(sys.argv[2])
def stop(*_):
    open(folder + "/saved", "w").close()
    os._exit(7)
signal.signal(number, stop)
open(folder + "/pid.part", "w").write(str(os.getpid()))
os.rename(folder + "/pid.part", folder + "/pid")
signal.pause()
"""


@pytest.fixture
def as_main() -> Iterator[None]:
    """Take signals as main() does; a shell may have its background jobs ignore SIGINT."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGTERM, before)
    signal.signal(signal.SIGINT, interrupt)


@pytest.mark.parametrize(
    ("number", "both", "stopped"),
    [(signal.SIGINT, True, KeyboardInterrupt), (signal.SIGTERM, False, SystemExit)],
)
def test_a_stopped_sweep_lets_its_run_save(
    number: signal.Signals, both: bool, stopped: type, tmp_path: Path, as_main: None
) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)

    def stop() -> None:
        while not (tmp_path / "pid").exists():
            time.sleep(0.01)
        if both:  # as a terminal does with Ctrl-C
            os.kill(int((tmp_path / "pid").read_text()), number)
        os.kill(os.getpid(), number)

    threading.Thread(target=stop, daemon=True).start()
    with pytest.raises(stopped):
        sweep.run_train([str(tmp_path), str(int(number))], str(tmp_path / "program.py"))
    assert (tmp_path / "saved").exists()


def test_exit_codes_are_returned(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text("import sys; sys.exit(len(sys.argv))")
    assert sweep.run_train(["a", "b"], str(tmp_path / "program.py")) == 3
