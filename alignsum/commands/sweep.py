"""Run train.py over a grid of settings, or search for good ones, and compare the runs.

    python -m alignsum sweep configs/sweeps/lora_ranks.yaml --config configs/lora.yaml
    python -m alignsum sweep configs/sweeps/lora_ranks.yaml --config configs/lora.yaml --list
    python -m alignsum sweep configs/sweeps/ppo_betas.yaml --config configs/ppo.yaml --seeds 1,2,3

How a sweep file is written: ``alignsum/sweep_plan.py``. Each run has its own folder, such as
``<out>/r4``, and the comparison is written to ``<out>/report``. Trials are recorded in an Optuna
study, ``<out>/sweep.db``. The same command continues an interrupted sweep: finished runs are
skipped, an interrupted fit resumes from its last checkpoint, and failed runs are repeated.
"""

import argparse
import hashlib
import logging
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from alignsum.overlays import config_values
from alignsum.sweep_plan import Params, Plan, find_reserved, read_plan
from common.exits import run, start_log
from common.run_folder import RunFolder, expand
from common.versions import redact_arguments, show_command

log = logging.getLogger("sweep")

REPORT = "report"
"""Folder of the comparison, next to the run folders."""


class Sweep:
    """The runs of a plan, and the Optuna study that records them.

    A trial's user attributes are its run's name, parameters, settings and exit code. The newest
    trial of a name tells how that run stands.

    Args:
        plan: What to run.
        shared: Arguments of train.py that every run gets.
        out: Folder of the run folders and of the study.
        seeds: Seeds of a grid; with none, the config's own seed is used.

    Raises:
        ValueError: If arguments are the sweep's own, or two runs would share a folder.
    """

    study: Any

    def __init__(
        self, plan: Plan, shared: Sequence[str], out: Path, seeds: Sequence[int] = ()
    ) -> None:
        if own := find_reserved(shared, plan.commands):
            raise ValueError(f"the sweep itself sets {', '.join(own)}")
        self.plan, self.shared, self.out = plan, list(shared), out
        grid = plan.list_grid(seeds) if seeds or plan.sampler == "grid" else []
        self.grid = {plan.name(params): params for params in grid}
        if len(self.grid) < len(grid) or REPORT in self.grid:
            raise ValueError("two folders would have one name; rename a choice, or repeat no seed")

    def folder(self, params: Params) -> RunFolder:
        """Return the folder of a run."""
        return RunFolder(self.out / self.plan.name(params))

    def arguments(self, params: Params) -> list[str]:
        """Return train.py's arguments for a run, without the command."""
        own = self.plan.arguments(params)
        return [*self.shared, *own, "--run_dir", str(self.folder(params).path)]

    def settings(self, params: Params) -> dict[str, Any]:
        """Describe what decides a run's result: commands, arguments and config files."""
        arguments = redact_arguments([*self.shared, *self.plan.arguments(params)])
        files = [Path(value) for _, value in config_values(arguments) if Path(value).is_file()]
        hashes = {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
        return {"commands": self.plan.commands, "arguments": arguments, "configs": hashes}

    def open_study(self) -> None:
        """Open the study, and mark the trials of a killed process as failed.

        Raises:
            ValueError: If there is a file that is no study.
        """
        import optuna  # deferred: --help and --list do not need it
        from sqlalchemy.exc import DatabaseError

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.out.mkdir(parents=True, exist_ok=True)
        path = self.out / "sweep.db"
        try:
            self.study = optuna.create_study(
                storage=f"sqlite:///{path}", study_name="sweep", load_if_exists=True,
                direction=self.plan.direction,
            )  # fmt: skip
        except DatabaseError as error:
            raise ValueError(f"{path} is no Optuna study ({error.orig}); remove it") from error
        state = optuna.trial.TrialState
        for trial in self.study.get_trials(states=(state.WAITING, state.RUNNING)):
            begun = self.study.ask() if trial.state == state.WAITING else trial
            self.study.tell(begun.number, state=state.FAIL)
        samplers = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
        if make_sampler := samplers.get(self.plan.sampler):
            # Another seed after an interruption: the same one would repeat the first draws.
            self.study.sampler = make_sampler(seed=len(self.study.get_trials()))

    def records(self) -> dict[str, dict[str, Any]]:
        """Return the user attributes of the newest trial of each run, by the run's name."""
        found = [trial.user_attrs for trial in self.study.get_trials(deepcopy=False)]
        return {attributes["run"]: attributes for attributes in found if "run" in attributes}

    def is_complete(self, params: Params) -> bool:
        """Whether all commands of a run succeeded, and its results still exist."""
        record = self.records().get(self.plan.name(params), {})
        return record.get("exit_code") == 0 and self.folder(params).summary.exists()

    def known_runs(self) -> dict[str, Params]:
        """Return the runs of the grid, or those that a sampler has drawn, by name."""
        return self.grid or {name: each["params"] for name, each in self.records().items()}

    def check(self) -> None:
        """Refuse what cannot work before anything runs.

        Raises:
            ValueError: If runs in the folder had other settings, or train.py refuses the arguments.
        """
        records, known = self.records(), self.known_runs()
        problems = [
            f"{name} holds a run with other settings; remove it, or choose another --out"
            for name, params in known.items()
            if self.folder(params).holds_run()
            and records.get(name, {}).get("settings") != self.settings(params)
        ]
        if not problems and not (self.grid and all(map(self.is_complete, known.values()))):
            for params in self.plan.list_examples():
                if error := find_parse_error([self.plan.commands[0], *self.arguments(params)]):
                    problems.append(f"{self.plan.name(params)}: {error}")
        if problems:
            raise ValueError("nothing was started:\n- " + "\n- ".join(problems))

    def draw_trials(self) -> Iterator[tuple[Any, Params]]:
        """Yield each trial that is to be run with its parameters: known runs, then new ones."""
        space = {} if self.grid else self.plan.make_space()
        for params in [each for each in self.known_runs().values() if not self.is_complete(each)]:
            self.study.enqueue_trial(params if space else {})
            yield self.study.ask(space), params
        for _ in range(self.plan.trials - len(self.records()) if space else 0):
            trial = self.study.ask(space)
            yield trial, trial.params

    def run_trial(self, trial: Any, params: Params) -> int:
        """Run a trial's commands, and record how they ended.

        Returns:
            0, or the exit code of the command that failed.
        """
        from optuna.trial import TrialState

        complete = self.is_complete(params)  # a sampler may draw the same choices twice
        trial.set_user_attr("run", self.plan.name(params))
        trial.set_user_attr("params", params)
        trial.set_user_attr("settings", self.settings(params))
        code = 0 if complete else self._run_commands(params)
        trial.set_user_attr("exit_code", code)
        value = None if code else read_objective(self.folder(params), self.plan)
        if value is None:
            self.study.tell(trial, state=TrialState.FAIL)
        else:
            self.study.tell(trial, value)
        return code

    def _run_commands(self, params: Params) -> int:
        folder = self.folder(params)
        for command in self.plan.commands:
            if command == "fit" and folder.read_summary().get("measured") == "fit":
                continue  # finished by an earlier call
            resumed = command == "fit" and (folder.checkpoints / "last.ckpt").exists()
            options = ["--resume", "auto"] if resumed else ["--overwrite", "true"]
            arguments = [command, *self.arguments(params), *options]
            log.info("$ %s", show_command(["python", "train.py", *arguments]))
            if code := run_train(arguments):
                return code
        return 0


def read_objective(folder: RunFolder, plan: Plan) -> float | None:
    """Read a run's best logged value of the plan's metric, or else the one of its summary."""
    best = max if plan.direction == "maximize" else min
    logged = [float(row[plan.metric]) for row in folder.read_metrics_csv() if row.get(plan.metric)]
    last = folder.read_summary().get("metrics", {}).get(plan.metric, {}).get("value")
    return best(logged) if logged else last


def run_train(arguments: Sequence[str], program: str | None = None) -> int:
    """Run train.py in a process of its own, and return its exit code.

    Ctrl-C reaches both processes: train.py saves a checkpoint, then this one stops. SIGTERM, which
    reaches this process alone and raises SystemExit (see :func:`main`), is passed on.
    """
    process = subprocess.Popen([sys.executable, program or find_train(), *arguments])  # noqa: S603
    try:
        return process.wait()
    except (KeyboardInterrupt, SystemExit) as stop:
        if isinstance(stop, SystemExit):
            process.terminate()
        process.wait()
        raise


def find_train() -> str:
    """Find train.py, in a checkout or where alignsum is installed."""
    spec = find_spec("train")
    assert spec is not None and spec.origin is not None  # noqa: S101 - it is part of alignsum
    return spec.origin


def find_parse_error(arguments: Sequence[str]) -> str:
    """Have train.py parse arguments and run nothing; returns what is wrong, or an empty text."""
    command = [sys.executable, find_train(), *arguments, "--print_config"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    text = done.stderr.partition("error:")[2] or done.stderr
    return text.strip() if done.returncode else ""


def read_seeds(text: str) -> list[int]:
    """Read seeds separated by commas.

    Raises:
        ValueError: If one is no number, or out of numpy's range.
    """
    seeds = [int(seed) for seed in text.split(",")]
    if not all(0 <= seed < 2**32 for seed in seeds):
        raise ValueError(f"seeds must be from 0 to {2**32 - 1}, got {text}")
    return seeds


def parse_arguments(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parse the sweep's own options; the others are train.py's."""
    parser = argparse.ArgumentParser(
        prog="alignsum sweep",
        description=(__doc__ or "").partition("\n")[0],
        epilog="All other options (--config FILE, --data.max_test_rows 50, ...) are train.py's and "
        "go to every run. Exit code: 0; 1 if a run failed; 2 if nothing was started.",
        allow_abbrev=False,
    )
    parser.add_argument("sweep", type=Path, help="sweep file, before all options")
    parser.add_argument("--out", type=Path, help="folder of the runs (default: runs/sweep_<file>)")
    parser.add_argument(
        "--seeds", type=read_seeds, default=[], metavar="N,N,...",
        help="run every combination with each of these seeds; a later call can add some",
    )  # fmt: skip
    parser.add_argument("--list", action="store_true", help="print the commands and run nothing")
    return parser.parse_known_args(arguments)


def sweep(options: argparse.Namespace, shared: Sequence[str]) -> int:
    """Run or list a sweep; returns the exit code."""
    out = expand(options.out or Path("runs") / f"sweep_{options.sweep.stem}")
    work = Sweep(read_plan(options.sweep), shared, out, options.seeds)
    if options.list:
        list_commands(work)
        return 0
    work.open_study()
    work.check()
    failed: dict[str, int] = {}
    for trial, params in work.draw_trials():
        log.info("--- run %s", name := work.plan.name(params))
        if code := work.run_trial(trial, params):
            failed[name] = code
    code = compare([str(work.out / name) for name in work.known_runs()], out / REPORT)
    for name, exit_code in failed.items():
        log.error("%s failed with exit code %d; the same command repeats it", name, exit_code)
    return int(bool(failed or code))


def list_commands(work: Sweep) -> None:
    """Print the commands of a grid, or examples of what a sampler may draw."""
    for params in work.grid.values() or work.plan.list_examples():
        arguments = work.arguments(params)
        lines = [
            show_command(["python", "train.py", each, *arguments]) for each in work.plan.commands
        ]
        sys.stdout.write("\n  ".join([work.plan.name(params), *lines]) + "\n")


def compare(folders: Sequence[str], out: Path) -> int:
    """Write the comparison of runs; returns its exit code."""
    from alignsum.__main__ import main as alignsum

    return alignsum(["compare", *folders, "--out", str(out)])


def main(args: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        0; 1 if a run or the comparison failed; 2 if nothing was started.
    """
    options, shared = parse_arguments(sys.argv[1:] if args is None else args)
    start_log()
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        return run(partial(sweep, options, shared), log, "stopped; the same command continues")
    finally:
        signal.signal(signal.SIGTERM, before)
