"""Time a training step with and without each part of acceleration, or against another commit.

    OMP_WAIT_POLICY=PASSIVE OMP_NUM_THREADS=2 python -m benchmarks.acceleration --method PPOPolicy
    git worktree add /tmp/old 60bcb1a
    python -m benchmarks.acceleration --against /tmp/old

Every variant is a process that runs ``train.py fit`` on the miniature with its configs, and stops
before each batch until it is its turn: round by round all variants take the same batch one after
the other. Medians of the rounds' own ratios are printed, because machines drift within seconds.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console

CONFIGS = {"FullFT": "full_ft", "LoRA": "lora", "PPOPolicy": "ppo"}
SETTINGS: dict[str, dict[str, str]] = {
    "FullFT": {},
    "LoRA": {"model.target_modules": "[q, k, v, o]"},
    "PPOPolicy": {
        "model.policy.target_modules": "[q, k, v, o]",
        "model.advantage": "RLOO",
        "model.ppo.samples": "4",
        "model.ppo.epochs": "2",
        "data.batch_size": "16",
    },
}
"""Settings that the miniature's overlays of other commits do not share."""

HERE = Path(__file__).resolve().parents[1]
console = Console(width=140)
WARM_UP = 2
"""First rounds, which are not counted."""


class Variant:
    """A process that trains one batch whenever it is asked.

    Args:
        method: Key of ``CONFIGS``.
        tree: Checkout whose code runs.
        off: Part of acceleration to leave out, or ``all``.
        folder: Run folder.
        batches: Number of batches that will be drawn.
        clock: Function of ``time``.
        extra: Further arguments of ``train.py``.
    """

    def __init__(
        self,
        method: str,
        tree: Path,
        off: str,
        folder: Path,
        batches: int,
        clock: str,
        extra: list[str],
    ) -> None:
        command = [sys.executable, __file__, "--worker", method, str(folder), off, str(batches)]
        command += [clock, *extra]
        environment = os.environ | {"PYTHONPATH": str(tree), "HF_HUB_OFFLINE": "1"}
        self.log = (folder.parent / f"{folder.name}.log").open("w")
        self.process: Any = subprocess.Popen(  # noqa: S603 - our own command
            command, cwd=tree, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log,
        )  # fmt: skip

    def step(self) -> float:
        """Train one batch; return its seconds."""
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("seconds "):
                return float(line.split()[1])
        raise RuntimeError(f"a variant ended; see {self.log.name}")


def work(
    method: str, folder: str, off: str, batches: int, clock_name: str, extra: list[str]
) -> None:
    """Be the process of a variant: fit, one batch for each line on stdin."""
    import lightning as L

    clock = getattr(time, clock_name)

    answers = os.fdopen(os.dup(1), "w", 1)
    os.dup2(2, 1)  # whatever the run prints goes to the log

    class TakeTurns(L.Callback):
        """Wait for a line before each batch, and answer with its seconds."""

        def on_train_batch_start(self, *_: Any) -> None:
            if not sys.stdin.readline():
                sys.exit(0)
            self.started = clock()

        def on_train_batch_end(self, *_: Any) -> None:
            answers.write(f"seconds {clock() - self.started}\n")

    sys.modules["turns"] = type(sys)("turns")
    TakeTurns.__module__ = "turns"
    sys.modules["turns"].TakeTurns = TakeTurns  # type: ignore[attr-defined]
    if off != "none":
        from lightning_modules.acceleration import PARTS

        for part in list(PARTS) if off == "all" else [off]:
            del PARTS[part]

    import train

    train.main(
        [
            "fit", "--config", f"configs/{CONFIGS[method]}.yaml",
            "--config", "configs/overlays/mini.yaml", "--run_dir", folder,
            "--trainer.limit_train_batches", str(batches), "--trainer.max_epochs", "1",
            "--trainer.limit_val_batches", "0", "--trainer.num_sanity_val_steps", "0",
            "--trainer.callbacks+=turns.TakeTurns",
            *(f"--{name}={value}" for name, value in SETTINGS[method].items()),
            *extra,
        ]
    )  # fmt: skip


def measure(
    method: str,
    variants: dict[str, tuple[Path, str]],
    rounds: int,
    clock: str,
    extra: list[str],
) -> None:
    """Print each variant's median seconds and its ratio to the first one, round by round."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        running = {
            name: Variant(
                method, tree, off, Path(folder) / str(number), rounds + WARM_UP, clock, extra
            )
            for number, (name, (tree, off)) in enumerate(variants.items())
        }
        seconds: dict[str, list[float]] = {name: [] for name in variants}
        try:
            for _ in range(rounds + WARM_UP):
                for name, variant in running.items():
                    seconds[name].append(variant.step())
        except RuntimeError:
            for variant in running.values():
                console.print(Path(variant.log.name).read_text()[-2000:])
            raise
        finally:
            for variant in running.values():
                variant.process.kill()
    kept = {name: times[WARM_UP:] for name, times in seconds.items()}
    first = next(iter(kept))
    for name, times in kept.items():
        ratios = [own / base for own, base in zip(times, kept[first], strict=True)]
        console.print(
            f"{method:10} {name:22} {statistics.median(times):7.3f} s  "
            f"ratio to {first} {statistics.median(ratios):.3f}  n {len(times)}"
        )


def main() -> None:
    """Measure what the command line asks for."""
    if sys.argv[1:2] == ["--worker"]:
        method, folder, off, batches, clock, *extra = sys.argv[2:]
        work(method, folder, off, int(batches), clock, extra)
        return
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--method", choices=CONFIGS, nargs="*", default=list(CONFIGS))
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--against", type=Path, help="checkout of another commit")
    parser.add_argument("--without", nargs="*", default=[], help="parts to leave out, one by one")
    parser.add_argument("--cpu", action="store_true", help="CPU time: use it on a busy machine")
    options, extra = parser.parse_known_args()
    for method in options.method:
        variants = {"accelerated": (HERE, "none"), "plain": (HERE, "all")}
        if options.against is not None:
            variants = {"other commit": (options.against.resolve(), "none")} | variants
        variants |= {f"without {part}": (HERE, part) for part in options.without}
        clock = "process_time" if options.cpu else "perf_counter"
        measure(method, variants, options.rounds, clock, extra)


if __name__ == "__main__":
    main()
