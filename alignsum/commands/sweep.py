"""Run train.py over a grid of settings, or search for good ones, and compare the runs.

    python -m alignsum sweep configs/sweeps/lora_ranks.yaml --config configs/lora.yaml
    python -m alignsum sweep configs/sweeps/lora_ranks.yaml --config configs/lora.yaml --list
    python -m alignsum sweep configs/sweeps/ppo_betas.yaml --config configs/ppo.yaml --seeds 1,2,3

A run's folder is named after its choices, such as ``<out>/r4``; ``<out>/report`` compares them. The
same command continues an interrupted sweep: an Optuna study, ``<out>/sweep.db``, records the runs;
finished ones are skipped, an interrupted fit resumes from its last checkpoint, and failed runs are
repeated. A sweep file needs ``axes``, ``ranges`` or both; the other keys have defaults:

    commands: [fit, test]      # [test] for a method that trains nothing
    sampler: grid              # every combination; or random, or tpe
    trials: 20                 # runs of random and tpe
    metric: val/rouge1         # objective of a run: the best value in its metrics.csv
    direction: maximize        # or minimize
    axes:                      # named choices of train.py's settings
      rank:
        r4: {model.r: 4, model.alpha: 8}
        r16: {model.r: 16, model.alpha: 32}
    ranges:                    # numbers to draw, for random and tpe
      model.optimizer.lr: {low: 1.0e-5, high: 1.0e-3, log: true}
"""

import itertools
import json
import logging
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from alignsum.commands.options import make_parser
from alignsum.overlays import SHIPPED
from common.exits import StoppedBySignal, run, start_log
from common.run_folder import RunFolder, expand
from common.versions import show_command

log = logging.getLogger("sweep")

Params = dict[str, Any]
"""A run: the name of a choice on each axis, and a number for each range."""

SEEDS = "--seeds"
"""The axis of the seeds on the command line."""


@dataclass
class Sweep:
    """A sweep file, whose keys the module's docstring explains.

    Args:
        out: Folder of the run folders and of the study.
        shared: Arguments of train.py that every run gets.

    Raises:
        ValueError: If the sweep is invalid.
    """

    out: str
    shared: list[str]
    axes: dict[str, dict[Any, dict[str, Any]]] = field(default_factory=dict)
    ranges: dict[str, dict[str, int | float | bool]] = field(default_factory=dict)
    commands: list[Literal["fit", "test"]] = field(default_factory=lambda: ["fit", "test"])
    sampler: Literal["grid", "random", "tpe"] = "grid"
    trials: int = 20
    metric: str = "val/rouge1"
    direction: Literal["maximize", "minimize"] = "maximize"

    def __post_init__(self) -> None:
        # YAML reads a choice such as 4 as a number.
        self.axes = {axis: {str(k): v for k, v in each.items()} for axis, each in self.axes.items()}
        if not self.axes and not self.ranges:
            raise ValueError("it has neither axes nor ranges")
        if self.sampler == "grid" and self.ranges:
            raise ValueError("a grid cannot enumerate ranges; use random or tpe")
        for choice in itertools.chain(*self.axes.values()):
            if choice == "report" or not re.fullmatch(r"[A-Za-z0-9][\w.+]*", choice, re.ASCII):
                raise ValueError(f"{choice!r} cannot name a folder; use letters, digits and _.+")

    def name(self, params: Params) -> str:
        """Name a run after its choices and numbers."""
        numbers = [f"{name.rpartition('.')[2]}{params[name]:.3g}" for name in self.ranges]
        return "-".join([*(params[axis] for axis in self.axes), *numbers])

    def arguments(self, params: Params) -> list[str]:
        """Translate a run into arguments of train.py."""
        # With as many digits as in the name, so that runs of one name are the same.
        settings: dict[str, Any] = {name: f"{params[name]:.3g}" for name in self.ranges}
        for axis, choices in self.axes.items():
            settings |= choices[params[axis]]
        texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in settings.items()}
        return [*self.shared, *(f"--{name}={text}" for name, text in texts.items())]

    def folder(self, params: Params) -> RunFolder:
        """Return the folder of a run."""
        return RunFolder(expand(self.out) / self.name(params))

    def draw(self, study: Any) -> Iterator[tuple[Any, Params]]:
        """Yield the runs that are not finished: known ones, then a sampler's new ones."""
        known, space = self.list_runs(study), self.make_space()
        for params in known:
            if self.find_pending(params):
                study.enqueue_trial(params)
                yield study.ask(space), params
        for _ in range(self.trials - len(known) if space else 0):
            trial = study.ask(space)
            yield trial, trial.params

    def list_runs(self, study: Any = None) -> list[Params]:
        """List a grid's combinations seed by seed, or what a sampler has drawn so far."""
        if self.sampler == "grid":
            axes = sorted(self.axes, key=lambda axis: axis != SEEDS)
            grid = itertools.product(*(self.axes[axis] for axis in axes))
            return [dict(zip(axes, names, strict=True)) for names in grid]
        drawn = [trial.params for trial in study.get_trials(deepcopy=False)] if study else []
        return list({self.name(params): params for params in drawn}.values())

    def make_space(self) -> dict[str, Any]:
        """Return Optuna's distribution of each axis and range; a grid has none."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.sampler == "grid":
            return {}
        space = {axis: CategoricalDistribution([*choices]) for axis, choices in self.axes.items()}
        for name, each in self.ranges.items():
            whole = isinstance(each.get("low"), int) and isinstance(each.get("high"), int)
            space[name] = (IntDistribution if whole else FloatDistribution)(**each)
        return space

    def find_pending(self, params: Params) -> list[str]:
        """List the commands of a run that have not finished yet.

        Raises:
            ValueError: If the folder holds a run with other settings.
        """
        folder, arguments = self.folder(params), show_command(self.arguments(params))
        summary = folder.read_summary()
        if summary and f"{arguments} --run_dir" not in summary.get("command", ""):
            raise ValueError(
                f"{folder.path} holds a run with other settings; remove it, or choose another --out"
            )
        done = {"fit": summary.get("measured") == "fit", "test": folder.predictions.exists()}
        return [command for command in self.commands if not done[command]]

    def run_pending(self, params: Params) -> int:
        """Run the commands of a run that have not finished; return the first bad exit code."""
        for command in self.find_pending(params):
            options = ["--resume", "auto"] if command == "fit" else []
            run_dir = ["--run_dir", str(self.folder(params).path)]
            if code := run_train([command, *self.arguments(params), *run_dir, *options]):
                return code
        return 0

    def read_objective(self, params: Params) -> float | None:
        """Read the best logged value of the metric, or else the one of the summary."""
        folder, best = self.folder(params), max if self.direction == "maximize" else min
        logged = [row[self.metric] for row in folder.read_metrics_csv() if row.get(self.metric)]
        last = folder.read_summary().get("metrics", {}).get(self.metric, {}).get("value")
        return best(map(float, logged)) if logged else last


def read_sweep(path: Path, out: str, shared: Sequence[str], seeds: Sequence[int] = ()) -> Sweep:
    """Read a sweep file; with seeds, every combination runs with each of them.

    Raises:
        ValueError: If the file cannot be read, or is invalid.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Sweep)
    try:
        content = {**yaml.safe_load(path.read_text(encoding="utf-8"))}
        if seeds:
            axis = {f"seed{seed}": {"seed_everything": seed} for seed in seeds}
            content["axes"] = {**content.get("axes", {}), SEEDS: axis}
        content |= {"out": out, "shared": [*shared]}
        return Sweep(**parser.parse_object(content).as_dict())
    except FileNotFoundError as error:
        raise ValueError(f"there is no sweep file {path}; --list shows the shipped ones") from error
    except (OSError, TypeError, ValueError, yaml.YAMLError, ArgumentError) as error:
        raise ValueError(f"sweep file {path}: {error}") from error


def run_train(arguments: Sequence[str]) -> int:
    """Run train.py in a separate process and return its exit code.

    A signal stops the run, which saves a checkpoint, and then the sweep. Ctrl-C reaches both
    processes; SIGTERM reaches this one alone and is passed on.

    Raises:
        StoppedBySignal: After SIGTERM.
    """
    log.info("$ %s", show_command(["python", "train.py", *arguments]))
    process = subprocess.Popen([sys.executable, str(SHIPPED / "train.py"), *arguments])  # noqa: S603
    before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    if code in (-signal.SIGTERM, 128 + signal.SIGTERM):
        raise StoppedBySignal(signal.SIGTERM, is_fit=False)
    return code


def perform(sweep: Sweep) -> int:
    """Run a sweep and compare its runs; return 1 if a run or the comparison failed."""
    import optuna  # deferred: --help and --list do not need it

    from alignsum.commands import compare

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path, failed = expand(sweep.out) / "sweep.db", []
    path.parent.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        storage=f"sqlite:///{path}", study_name="sweep", load_if_exists=True,
        direction=sweep.direction,
    )  # fmt: skip
    make_sampler = {"tpe": optuna.samplers.TPESampler}.get(sweep.sampler)
    # Another seed after an interruption: the same one would repeat the first draws.
    study.sampler = (make_sampler or optuna.samplers.RandomSampler)(seed=len(study.trials))
    for trial, params in sweep.draw(study):
        name = sweep.name(params)
        log.info("--- run %s", name)
        trial.set_user_attr("run", name)
        if code := sweep.run_pending(params):
            failed.append(f"{name} failed with exit code {code}; the same command repeats it")
        value = None if code else sweep.read_objective(params)
        study.tell(trial, value, state=optuna.trial.TrialState.FAIL if value is None else None)
    runs = [str(sweep.folder(params).path) for params in sweep.list_runs(study)]
    code = compare.main([*runs, "--out", f"{sweep.out}/report"])
    for problem in failed:
        log.error("%s", problem)
    return int(bool(failed or code))


def read_seeds(text: str) -> list[int]:
    """Read seeds separated by commas."""
    return [int(seed) for seed in text.split(",")]


def main(args: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    parser = make_parser(
        "sweep", (__doc__ or "").partition("\n")[0],
        "All other options (--config FILE, --data.max_test_rows 50, ...) are train.py's and\n"
        "go to every run. Exit code: 0; 1 if a run failed; 2 if nothing was started.",
    )  # fmt: skip
    parser.add_argument("file", type=Path, help="sweep file, before all options")
    parser.add_argument("--out", help="folder of the runs (default: runs/sweep_<file>)")
    parser.add_argument(
        SEEDS, type=read_seeds, default=[], metavar="N,N,...",
        help="run every combination with each of these seeds; a later call can add some",
    )  # fmt: skip
    parser.add_argument("--list", action="store_true", help="print a grid's settings, run nothing")
    options, shared = parser.parse_known_args(args)
    start_log()

    def work() -> int:
        out = options.out or f"runs/sweep_{options.file.stem}"
        sweep = read_sweep(options.file, out, shared, options.seeds)
        if not options.list:
            return perform(sweep)
        for params in sweep.list_runs():
            command = show_command(sweep.arguments(params))
            sys.stdout.write(f"{sweep.name(params)}: {command}\n")
        return 0

    return run(work, log, "stopped; the same command continues")
