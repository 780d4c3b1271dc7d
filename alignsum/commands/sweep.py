"""Run train.py over every combination of named choices, and compare the runs in one table.

    python sweep.py configs/sweeps/prompting.yaml --config configs/in_context.yaml
    python sweep.py configs/sweeps/prompting.yaml --config configs/in_context.yaml --list
    python sweep.py configs/sweeps/ppo_betas.yaml --config configs/ppo.yaml --seeds 1,2,3

The same call goes on where an earlier one stopped: complete runs are skipped, and a fit that was
broken off is resumed. How a sweep file is written: sweeping/plan.py and docs/running.md.
"""

import argparse
import logging
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from common.exits import start_log
from common.paths import expand
from common.redaction import show_command
from sweeping.plan import REPORT, Combination, find_reserved, read_plan, repeat
from sweeping.processes import call, find_parse_errors
from sweeping.runs import Sweep, console

log = logging.getLogger("sweep")


def parse_arguments(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Take the sweep's own options, and give the others, which are train.py's.

    By argparse: jsonargparse, which reads the other command lines here, hands nothing on.
    """
    parser = argparse.ArgumentParser(
        prog="sweep.py",
        description=(__doc__ or "").partition("\n")[0],
        epilog="All other options are train.py's (--config FILE, --data.max_test_rows 50, ...) and "
        "are given to every run. Exit code: 0; 1 where a run failed; 2 where nothing was started.",
        allow_abbrev=False,
    )
    parser.add_argument("sweep", type=Path, help="sweep file, before all options")
    parser.add_argument("--out", type=Path, help="folder of the run folders (runs/sweep_<file>)")
    parser.add_argument(
        "--seeds", type=read_seeds, metavar="N,N,...",
        help="run every combination once for each of these seeds (seed_everything), with "
        "-seed<N> behind its name; more seeds can be added by a later call",
    )  # fmt: skip
    parser.add_argument("--list", action="store_true", help="print the commands and run nothing")
    parser.add_argument(
        "--overwrite", choices=("true", "false"), default="false",
        help="remove what earlier calls left, complete or not, and run every combination",
    )  # fmt: skip
    return parser.parse_known_args(arguments)


def read_seeds(text: str) -> list[int]:
    """Read seeds with commas between; argparse reports what is no number.

    Raises:
        argparse.ArgumentTypeError: If one is out of numpy's range.
    """
    seeds = [int(seed) for seed in text.split(",")]
    if not all(0 <= seed < 2**32 for seed in seeds):
        raise argparse.ArgumentTypeError(f"seeds have to be from 0 to {2**32 - 1}, got {text}")
    return seeds


def list_commands(sweep: Sweep) -> None:
    """Print the combinations and their commands."""
    for run in sweep.plan.combinations:
        console.print(run.name, style="bold", markup=False, highlight=False)
        for command in sweep.plan.commands:
            line = show_command(["python", "train.py", command, *sweep.arguments(run)])
            console.print(f"  {line}", markup=False, highlight=False)


def check(sweep: Sweep, waiting: Sequence[Combination], overwrite: bool) -> None:
    """Refuse, before anything runs, what cannot go well.

    Raises:
        ValueError: With all that is wrong.
    """
    if problem := sweep.find_output_problem():
        problems = [problem]
    elif not overwrite and (problems := sweep.find_others()):
        problems.append("name another folder with --out, or run all anew with --overwrite true")
    else:
        commands = [[sweep.plan.commands[0], *sweep.arguments(run)] for run in waiting]
        errors = zip(waiting, find_parse_errors(commands), strict=True)
        problems = [f"{run.name}: {error}" for run, error in errors if error]
    if problems:
        raise ValueError("nothing was started:\n- " + "\n- ".join(problems))


def run_all(sweep: Sweep, waiting: Sequence[Combination]) -> dict[str, int]:
    """Run combinations one after the other.

    Returns:
        Exit codes of those that failed, by name.
    """
    failed: dict[str, int] = {}
    started = time.monotonic()
    for place, run in enumerate(waiting):
        took = time.monotonic() - started
        left = f", about {took / place * (len(waiting) - place) / 60:.0f} min left" if place else ""
        console.rule(f"[bold]{place + 1} of {len(waiting)}: {run.name}{left}")
        if code := sweep.run(run):
            failed[run.name] = code
            console.print(f"{run.name} failed with exit code {code}", style="red")
    return failed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a sweep.

    Args:
        arguments: Arguments without the program's name; those of the process by default.

    Returns:
        0; 1 where a run or the comparison failed; 2 where nothing was started.
    """
    start_log()
    options, shared = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    overwrite = options.overwrite == "true"
    try:
        out = expand(options.out or Path("runs") / f"sweep_{options.sweep.stem}")
        plan = read_plan(options.sweep)
        if options.seeds:
            plan = repeat(plan, options.seeds)
        sweep = Sweep(plan, shared, out)
        if reserved := find_reserved(shared, sweep.plan.commands):
            raise ValueError(f"{', '.join(reserved)}: the sweep itself gives this to train.py")
        runs = sweep.plan.combinations
        if options.list:
            list_commands(sweep)
            return 0
        waiting = [run for run in runs if overwrite or not sweep.is_complete(run)]
        check(sweep, waiting, overwrite)
    except (ValueError, OSError) as error:
        log.error("%s", error)
        return 2
    if complete := [run.name for run in runs if run not in waiting]:
        console.print(f"{len(complete)} of {len(runs)} are complete: {', '.join(complete)}")
    if overwrite:
        for run in runs:
            sweep.start_anew(run)
    failed = run_all(sweep, waiting)
    console.rule("[bold]comparison")
    folders = [str(sweep.folder(run).path) for run in runs]
    code = call("report.py", "compare", *folders, "--out", str(out / REPORT))
    for name, exit_code in failed.items():
        log.error("%s failed with exit code %d; the same call runs it again", name, exit_code)
    return int(bool(failed or code))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        log.error("Stopped; the same call goes on from here")
        sys.exit(128 + signal.SIGINT)
