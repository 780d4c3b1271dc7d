"""Sweeps: the plan, which runs are repeated and which are not, and small ones run for real."""

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

import train
from alignsum.commands import compare, sweep
from alignsum.commands.sweep import Sweep, read_sweep
from common.exits import StoppedBySignal
from common.run_folder import RunFolder
from common.versions import show_command
from tests.rows import write_rows

ROOT = Path(__file__).parent.parent


def write_plan(folder: Path, **content: Any) -> str:
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return str(path)


def read(path: str, seeds: Sequence[int] = ()) -> Sweep:
    return read_sweep(Path(path), "out", [], seeds)


def test_a_grid_in_the_order_of_the_file_and_seed_by_seed(tmp_path: Path) -> None:
    axes = {
        "rank": {4: {"model.r": 4}, "r16": {"model.r": 16, "model.init_args.alpha": 0.123456}},
        "style": {"plain": {}, "own": {"data.prompt": {"class_path": "X", "init_args": {}}}},
    }
    path = write_plan(tmp_path, axes=axes)
    made = read(path)
    assert made.commands == ["fit", "test"]
    own = '--data.prompt={"class_path": "X", "init_args": {}}'
    r16 = ["--model.r=16", "--model.init_args.alpha=0.123456"]
    runs = {made.name(params): made.arguments(params) for params in made.list_runs()}
    assert list(runs.items()) == [
        ("4-plain", ["--model.r=4"]),
        ("4-own", ["--model.r=4", own]),
        ("r16-plain", r16),
        ("r16-own", [*r16, own]),
    ]
    seeded = read(path, [7, 1])
    runs = {seeded.name(params): seeded.arguments(params) for params in seeded.list_runs()}
    assert list(runs)[3:5] == ["r16-own-seed7", "4-plain-seed1"]
    assert runs["4-plain-seed1"] == ["--model.r=4", "--seed_everything=1"]


def test_a_drawn_run_is_named_after_its_numbers(tmp_path: Path) -> None:
    ranges = {"model.optimizer.lr": {"low": 1e-5, "high": 1e-3, "log": True}}
    ranges |= {"model.r": {"low": 1, "high": 64}}
    path = write_plan(tmp_path, axes={"x": {"a": {"b": "c"}}}, ranges=ranges, sampler="random")
    made, params = read(path), {"x": "a", "model.optimizer.lr": 0.000123456, "model.r": 8}
    assert made.name(params) == "a-lr0.000123-r8"
    assert {*made.arguments(params)} == {
        "--b=c", "--model.optimizer.lr=0.000123", "--model.r=8",
    }  # fmt: skip


GOOD = {"x": {"one": {"a": 1}, "two": {"a": 2}}}
RANGE = {"a": {"low": 1, "high": 2}}


@pytest.mark.parametrize(
    ("content", "messages"),
    [
        ([1], ["not a mapping"]),
        ({}, ["neither axes nor ranges"]),
        ({"axes": GOOD, "runs": 3}, ["runs"]),
        ({"axes": {"x": {"a b": {}}}}, ["'a b' cannot name"]),
        ({"axes": {"x": {"report": {}}}}, ["'report' cannot name"]),
        ({"axes": {"x": {"a-b": {}}}}, ["'a-b' cannot name"]),  # runs are named a-b by two axes
        ({"ranges": RANGE, "axes": GOOD}, ["a grid cannot enumerate ranges"]),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file(content: Any, messages: list[str], tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match=r"plan\.yaml") as caught:
        read(str(path), [] if content in ([1], {}) else [1])
    for message in messages:
        assert message in str(caught.value)


class Programs:
    """Stands in for train.py: does what it does to a run folder, and records the calls."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.fails: dict[str, int] = {}
        self.compared: list[str] = []
        self.score: Callable[[str], float] = lambda name: 0.2

    def __call__(self, arguments: list[str]) -> int:
        folder = RunFolder(arguments[arguments.index("--run_dir") + 1])
        command = arguments[0]
        self.calls.append(
            [command, folder.path.name, *arguments[arguments.index("--run_dir") + 2 :]]
        )
        if command == "fit":
            folder.checkpoints.mkdir(parents=True, exist_ok=True)
            (folder.checkpoints / "last.ckpt").touch()
            score = self.score(folder.path.name)
            folder.metrics_csv.write_text(f"step,val/rouge1\n1,{score}\n2,0.3\n3,\n")
        if code := self.fails.get(f"{command} {folder.path.name}", 0):
            if code == -1:
                raise KeyboardInterrupt
            return code
        about = {} if command == "test" else {"measured": "fit"}
        folder.update_summary(command=show_command(["python", "train.py", *arguments]), **about)
        if command == "test":
            folder.merge_predictions([{"id": "a"}])
        return 0

    def compare(self, arguments: list[str]) -> int:
        self.compared = [Path(folder).name for folder in arguments[: arguments.index("--out")]]
        return 0


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> Programs:
    made = Programs()
    monkeypatch.setattr(sweep, "run_train", made)
    monkeypatch.setattr(compare, "main", made.compare)
    return made


RESUME = ["--resume", "auto"]


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
        ["test", "b"],
        ["fit", "c", *RESUME], ["test", "c"],
    ]  # fmt: skip
    assert "a failed with exit code 3" in caplog.text
    programs.fails = {}
    programs.calls.clear()
    assert sweep.main(command) == 0
    assert programs.calls == [
        ["fit", "a", *RESUME], ["test", "a"],
        ["test", "b"],
    ]  # fmt: skip
    programs.calls.clear()
    assert sweep.main(command) == 0
    assert programs.calls == []
    assert programs.compared == ["a", "b", "c"]
    assert read_trials(out) == [
        ("a", "FAIL", None), ("b", "FAIL", None), ("c", "RUNNING", None),
        ("a", "FAIL", None), ("b", "FAIL", None), ("c", "COMPLETE", 0.3),
        ("a", "COMPLETE", 0.3), ("b", "COMPLETE", 0.3),
    ]  # fmt: skip
    RunFolder(out / "b").clear()
    assert sweep.main(command) == 0
    assert programs.calls == [["fit", "b", *RESUME], ["test", "b"]]


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
    with pytest.raises(SystemExit):
        sweep.main(["plan.yaml", "--seeds", "1,b"])
    assert "'1,b'" in capsys.readouterr().err


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


def test_a_search_prefers_what_was_better(tmp_path: Path, programs: Programs) -> None:
    """TPE has to see the objective: after ten draws, most of its choices are the good one."""
    programs.score = lambda name: (float(name.partition("lr")[2]) - 0.8) ** 2
    plan = write_plan(
        tmp_path, ranges={"lr": {"low": 0.0, "high": 1.0}}, sampler="tpe", trials=30,
        direction="minimize",
    )  # fmt: skip
    assert sweep.main([plan, "--out", str(tmp_path / "out")]) == 0
    drawn = [float(name.partition("lr")[2]) for name in programs.compared]
    assert sum(abs(lr - 0.8) < 0.15 for lr in drawn[10:]) > 0.6 * len(drawn[10:])


def test_runs_with_other_settings_are_refused(
    tmp_path: Path, programs: Programs, caplog: pytest.LogCaptureFixture
) -> None:
    def run(choices: dict[str, Any], *options: str) -> int:
        plan = write_plan(tmp_path, commands=["test"], axes={"x": choices})
        programs.calls.clear()
        return sweep.main([plan, "--out", str(tmp_path / "out"), *options])

    assert run({"a": {"r": 1}, "b": {"r": 2}}) == 0
    for change in (({"a": {"r": 1}, "b": {"r": 22}},), ({"b": {"r": 2}}, "--data.k", "1")):
        assert run(*change) == 2
        assert programs.calls == []
        assert "b holds a run with other settings" in caplog.text
    RunFolder(tmp_path / "out" / "b").clear()
    assert run({"b": {"r": 22}}) == 0


def test_list_prints_the_settings_and_runs_nothing(
    tmp_path: Path, programs: Programs, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = write_plan(tmp_path, axes={"x": {"a": {"prompt": "with space"}, "b": {}}})
    out = tmp_path / "o"
    assert sweep.main([plan, "--config", "c.yaml", "--out", str(out), "--list"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "a: --config c.yaml '--prompt=with space'", "b: --config c.yaml",
    ]  # fmt: skip
    assert not out.exists()
    assert programs.calls == []


@pytest.fixture
def base(t5: str, roberta: str, tmp_path: Path) -> list[str]:
    rows = [
        {"id": f"r{i}", "dialogue": f"#Person1#: Is {i} free?", "summary": f"{i} is free."}
        for i in range(6)
    ]
    write_rows(tmp_path / "data", train=rows[:4], validation=rows[4:], test=rows[4:])
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


def test_two_by_two_with_a_failing_choice(
    base: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(sweep, "run_train", in_process)
    template = {"class_path": "Template", "init_args": {"template": "{dialogue}?"}}
    axes = {
        "style": {"flan": {"data.prompt": "Flan"}, "own": {"data.prompt": template}},
        "shots": {
            "two": {"data.shots": 2, "data.examples": "SimilarExamples"},
            "many": {"data.shots": 9},
        },
    }
    plan = write_plan(tmp_path, commands=["test"], metric="test/rouge1", axes=axes)
    assert sweep.main([plan, *base]) == 1
    assert "own-many failed with exit code 2" in caplog.text
    out = tmp_path / "out"
    table = (out / "report" / "comparison.md").read_text()
    assert "| own-two | 2 |" in table
    assert "not clearly" in " ".join(capsys.readouterr().out.split())
    config = yaml.safe_load(RunFolder(out / "own-two").config.read_text())
    assert config["data"]["init_args"]["prompt"]["init_args"]["template"] == "{dialogue}?"
    trials = {run: (state, value) for run, state, value in read_trials(out)}
    measured = RunFolder(out / "own-two").read_summary()["metrics"]["test/rouge1"]["value"]
    assert trials["own-two"] == ("COMPLETE", measured)
    assert trials["own-many"] == ("FAIL", None)


@pytest.mark.slow
def test_a_sweep_in_processes_of_its_own(base: list[str], tmp_path: Path) -> None:
    axes = {"rank": {"r1": {"model.r": 1}, "r2": {"model.r": 2}}}
    plan = write_plan(tmp_path, axes=axes)
    lora = ["--config", str(ROOT / "configs" / "lora.yaml"), *base[2:], "--trainer.max_epochs=1"]
    assert sweep.main([plan, *lora]) == 0
    summary = RunFolder(tmp_path / "out" / "r1").read_summary()
    assert summary["measured"] == "fit"
    assert summary["metrics"]["test/rouge1"]["n"] == 2
    assert [run for run, state, _ in read_trials(tmp_path / "out")] == ["r1", "r2"]


PROGRAM = """
import os, signal, sys
def stop(number, frame):
    open(sys.argv[1] + "/saved", "w").close()
    os._exit(128 + number)
signal.signal(signal.SIGINT, stop)
signal.signal(signal.SIGTERM, stop)
open(sys.argv[1] + "/pid.part", "w").write(str(os.getpid()))
os.rename(sys.argv[1] + "/pid.part", sys.argv[1] + "/pid")
signal.pause()
"""


@pytest.mark.parametrize(
    ("number", "both", "stopped"),
    [(signal.SIGINT, True, KeyboardInterrupt), (signal.SIGTERM, False, StoppedBySignal)],
)
def test_a_stopped_sweep_lets_its_run_save(
    number: signal.Signals, both: bool, stopped: type[BaseException], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(sweep, "SHIPPED", tmp_path)
    (tmp_path / "train.py").write_text(PROGRAM)

    def stop() -> None:
        while not (tmp_path / "pid").exists():
            time.sleep(0.01)
        if both:  # as a terminal does with Ctrl-C
            os.kill(int((tmp_path / "pid").read_text()), number)
        os.kill(os.getpid(), number)

    # A shell may have its background jobs ignore SIGINT.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=stop, daemon=True).start()
    try:
        with pytest.raises(stopped):
            sweep.run_train([str(tmp_path)])
    finally:
        signal.signal(signal.SIGINT, before)
    assert (tmp_path / "saved").exists()
