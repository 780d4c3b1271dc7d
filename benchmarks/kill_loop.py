"""Kill a run again and again, at any moment, and see whether it ends as if nothing had happened.

    python -m benchmarks.kill_loop --kills 100
    python -m benchmarks.kill_loop --kills 50 --runs ppo --root /tmp/kill_loop

Half of the kills go to a LoRA run on the miniature and half to a PPO run. Each is a ``kill -9`` of
a process that fits, at a random moment: in loading, in the middle of a step, of a validation or of
a write. Then the same command goes on with ``--resume auto`` (with ``--overwrite true`` where
nothing had been saved yet). A run that comes to its end is compared with one that nobody disturbed:
rows of ``metrics.csv``, ``samples.jsonl``, final metrics, weights and optimizer, bit for bit but
for clocks. Then another one begins, until all kills are spent. Exit code 0 where nothing differed.
"""

import argparse
import json
import logging
import math
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

# First: see train.py.
import lightning  # noqa: F401  # isort: skip
import rich
from rich.table import Table

import train
from common.run_folder import PARTIAL
from tests.breaking import differences, take_result

log = logging.getLogger("kill_loop")

RUNS = {
    "lora": [
        "--data.batch_size", "8", "--trainer.limit_train_batches", "16",
        "--trainer.max_epochs", "3", "--trainer.limit_val_batches", "4",
        "--trainer.val_check_interval", "8", "--checkpoint.every_n_train_steps", "2",
        "--model.decoding.max_new_tokens", "24",
    ],
    "ppo": [
        "--data.batch_size", "8", "--trainer.limit_train_batches", "6",
        "--trainer.max_epochs", "2", "--trainer.limit_val_batches", "1",
        "--model.ppo.minibatch_size", "4", "--model.ppo.max_new_tokens", "16",
        "--checkpoint.every_n_train_steps", "8", "--checkpoint.keep_last", "2",
        "--model.decoding.max_new_tokens", "16",
    ],
}  # fmt: skip


class Killer:
    """Fits one of the runs in child processes, and kills them.

    Args:
        name: Of :data:`RUNS`.
        root: Where its run folders lie.
        moments: Source of the moments.
    """

    def __init__(self, name: str, root: Path, moments: random.Random) -> None:
        self.name = name
        self.root = root
        self.moments = moments
        self.whole = root / f"{name}_whole"
        self.seconds = 0.0
        self.fit(self.whole)
        self.kills = self.ends = self.in_writes = self.before_first = 0
        self.found: list[str] = []

    def spend(self, kills: int) -> None:
        """Kill so many times, and let the last run come to its end."""
        folder, number = self.root / f"{self.name}_0", 0
        while self.kills < kills:
            if self.fit(folder, self.moments.uniform(0, self.seconds)):
                number += 1
                folder = self.compare(folder, number)
            else:
                self.count(folder)
        self.fit(folder)
        self.compare(folder, number)

    def fit(self, folder: Path, after: float = math.inf) -> bool:
        """Fit, or go on with it, and kill the process after some seconds.

        Returns:
            Whether the fit came to its end.

        Raises:
            RuntimeError: If it failed by itself.
        """
        saved = any((folder / "checkpoints").glob("*.ckpt"))
        more = ["--resume", "auto"] if saved else ["--overwrite", "true"]
        configs = ["--config", f"configs/{self.name}.yaml"]
        configs += ["--config", "configs/overlays/mini.yaml"]
        child = os.fork()
        if child == 0:
            fit_and_exit(["fit", *configs, *RUNS[self.name], "--run_dir", str(folder), *more])
        started = time.monotonic()
        while not (ended := os.waitpid(child, os.WNOHANG))[0]:
            if time.monotonic() - started >= after:
                os.kill(child, signal.SIGKILL)
            time.sleep(0.01)
        code = os.waitstatus_to_exitcode(ended[1])
        if code == 0 and not saved:
            self.seconds = time.monotonic() - started  # the machine may have become less busy
        if code not in (0, -signal.SIGKILL):
            raise RuntimeError(f"{folder} ended with code {code}; see what it wrote above")
        return code == 0

    def count(self, folder: Path) -> None:
        """Take down a kill, and what it struck."""
        self.kills += 1
        self.in_writes += any(folder.rglob(f".*{PARTIAL}"))
        self.before_first += not any((folder / "checkpoints").glob("*.ckpt"))

    def compare(self, folder: Path, number: int) -> Path:
        """Compare a run that came to its end, remove it, and name the folder of the next."""
        self.ends += 1
        found = differences(take_result(folder), take_result(self.whole))
        log.info("%s: %d kills, %d runs at their end", self.name, self.kills, self.ends)
        if found:
            log.error("%s differs: %s", folder, "; ".join(found)[:500])
        else:
            shutil.rmtree(folder)
        self.found += found
        return self.root / f"{self.name}_{number}"


def fit_and_exit(arguments: list[str]) -> None:
    """Run the command line in a forked child, which knows no way back."""
    code: int | str | None = 1
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        train.main(arguments)
        code = 0
    except SystemExit as stop:
        code = stop.code
    finally:
        os._exit(code if isinstance(code, int) else 1)


def make_table(killers: list[Killer], kills: int) -> Table:
    """Lay out what was done and found."""
    table = Table(title=f"{kills} kills at random moments", title_justify="left")
    for name in ("run", "seconds", "kills", "in a write", "nothing saved yet", "ends", "differ in"):
        table.add_column(name, justify="left" if name == "run" else "right")
    for each in killers:
        numbers = (each.kills, each.in_writes, each.before_first, each.ends, len(each.found))
        table.add_row(each.name, f"{each.seconds:.0f}", *map(str, numbers))
    return table


def main(args: list[str]) -> int:
    """Run the loop; give 0 where every run ended as the undisturbed one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=100, help="of all runs together")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--root", type=Path, default=Path("runs/kill_loop"), help="a new folder")
    settings = parser.parse_args(args)
    if settings.root.exists():
        parser.error(f"{settings.root} exists; remove it, or name another --root")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    killers = []
    for number, name in enumerate(settings.runs):
        killer = Killer(name, settings.root, random.Random(settings.seed + number))
        killer.spend(settings.kills // len(settings.runs))
        killers.append(killer)
    rich.get_console().print(make_table(killers, sum(each.kills for each in killers)))
    report = {each.name: [each.kills, each.ends, each.found] for each in killers}
    (settings.root / "result.json").write_text(json.dumps(report, indent=1) + "\n")
    return int(any(each.found for each in killers))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
