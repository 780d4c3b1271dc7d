"""Kill fits at random moments, resume them, and compare each with an uninterrupted one.

    python -m benchmarks.kill_loop --kills 20

Fits a LoRA and a PPO policy on the miniature. A fit is killed with SIGKILL after a random time and
continued with ``--resume auto`` until it ends; then the next one starts, until all kills are spent.
Weights, optimizer, metrics.csv and samples.jsonl must be equal to the last bit.
"""

import argparse
import logging
import math
import os
import random
import signal
import sys
import time
from pathlib import Path

import alignsum.cli  # noqa: F401 - imported once, before the forks
import train
from tests.breaking import differences, take_result

MINI = "--config configs/overlays/mini.yaml --data.batch_size 8 --model.decoding.max_new_tokens 16"
RUNS = {
    "lora": f"--config configs/lora.yaml {MINI} --trainer.limit_train_batches 16 "
    "--trainer.max_epochs 2 --trainer.limit_val_batches 2 --trainer.val_check_interval 8 "
    "--trainer.accumulate_grad_batches 2 --checkpoint.every_n_train_steps 2",
    "ppo": f"--config configs/ppo.yaml {MINI} --trainer.limit_train_batches 4 "
    "--trainer.max_epochs 2 --trainer.limit_val_batches 1 --model.ppo.minibatch_size 4 "
    "--model.ppo.max_new_tokens 16 --checkpoint.every_n_train_steps 8",
}


class Killer:
    """Fit one of the runs in child processes, kill them, and compare what they leave."""

    def __init__(self, name: str, root: Path) -> None:
        self.name = name
        self.root = root
        self.moments = random.Random()
        self.seconds = 0.0
        self.counts = {"kills": 0, "unsaved": 0, "finished runs": 0}
        self.found: list[str] = []
        self.fit(root / f"{name}_whole")

    @property
    def folder(self) -> Path:
        """The run that is killed until it finishes."""
        return self.root / f"{self.name}_{self.counts['finished runs']}"

    def spend(self, kills: int) -> None:
        """Kill a run `kills` times, and let the last one finish."""
        while self.counts["kills"] < kills:
            if self.fit(self.folder, self.moments.uniform(0, self.seconds)):
                self.compare()
                continue
            self.counts["kills"] += 1
            self.counts["unsaved"] += not any((self.folder / "checkpoints").glob("[!.]*.ckpt"))
        self.fit(self.folder)
        self.compare()

    def fit(self, folder: Path, after: float = math.inf) -> bool:
        """Fit or resume, and kill the process after some seconds; return whether it finished."""
        fresh = not folder.exists()
        child = os.fork()
        if child == 0:
            options = f"{RUNS[self.name]} --run_dir {folder} --resume auto"
            fit_and_exit(f"fit {options}".split(), folder.with_suffix(".log"))
        started = time.monotonic()
        while not (ended := os.waitpid(child, os.WNOHANG))[0]:
            if time.monotonic() - started >= after:
                os.kill(child, signal.SIGKILL)
            time.sleep(0.01)
        code = os.waitstatus_to_exitcode(ended[1])
        if code not in (0, -signal.SIGKILL):
            raise RuntimeError(f"exit code {code}; see {folder.with_suffix('.log')}")
        if code == 0 and fresh:
            self.seconds = time.monotonic() - started  # follows the load of the machine
        return code == 0

    def compare(self) -> None:
        """Compare the finished run with the uninterrupted one."""
        found = differences(take_result(self.folder), take_result(self.root / f"{self.name}_whole"))
        self.found += found
        self.counts["finished runs"] += 1
        logging.info("%s: %s, %d differences %s", self.name, self.counts, len(found), found[:3])


def fit_and_exit(arguments: list[str], output: Path) -> None:
    """Run the command line in a forked child, with its output in a file."""
    code: object = 1
    try:
        for stream in (1, 2):
            os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
        train.main(arguments)
        code = 0
    except SystemExit as stop:
        code = stop.code
    finally:
        os._exit(code if isinstance(code, int) else 1)


def main(args: list[str]) -> int:
    """Return 0 if every run ended like the uninterrupted one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20, help="per run")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--root", type=Path, default=Path("runs/kill_loop"), help="a new folder")
    settings = parser.parse_args(args)
    settings.root.mkdir(parents=True)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    killers = [Killer(name, settings.root) for name in settings.runs]
    for killer in killers:
        killer.spend(settings.kills)
    return int(any(killer.found for killer in killers))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
