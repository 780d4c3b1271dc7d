"""How many examples a second does supervised training take in, beside transformers' own trainer?

    python -m benchmarks.sft_throughput
    python -m benchmarks.sft_throughput --methods lora --precisions bf16-mixed --rounds 1

Ours is ``train.py fit`` with configs/full_ft.yaml or configs/lora.yaml. Theirs is
``Seq2SeqTrainer``, once with dynamic padding and groups of like length, and once with every source
padded to 512 tokens and every target to 128. All train a model of FLAN-T5-base's shape with random
weights on the same tokens of real DialogSum dialogues (the dev split, from ``DIALOGSUM_DIR``), in
batches of 8 (``--batch``), with the same dropout, AdamW, rate and clipping.

Each side is a process, and only one computes at a time: they take turns step by step, so that a
machine that drifts slows down both alike. Each goes through batches of its own epoch over the same
rows; ``choose`` in benchmarks.throughput_workers says which. The ratio is the median of the
rounds' ratios. Both models, their gradients, Adam's moments and activations are in memory at once:
in fp32, and for full fine-tuning, 24 GiB are enough for ``--batch 4``.
"""

import argparse
import json
import logging
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.dialogsum import FOLDER
from benchmarks.throughput_workers import (
    ROWS,
    WARMUP,
    Step,
    Task,
    prepare,
    run_ours,
    run_theirs,
)

logger = logging.getLogger(__name__)

LEAST = {"dynamic": 1.1, "fixed": 3.0}
"""How many times as fast as theirs ours has to be, by their padding."""

FIGURES = {"rows_per_s": ".2f", "tokens_per_s": ".0f", "efficiency": ".3f", "peak_gib": ".1f"}


class Side:
    """One contestant's process; what it prints goes to a file.

    Args:
        run: What it runs, one of the workers.
        task: What is trained.
    """

    def __init__(self, run: Callable[..., None], task: Task) -> None:
        context = get_context("spawn")
        self.pipe, end = context.Pipe()
        self.log = task.folder / f"{run.__name__}.log"
        self.process = context.Process(target=logged, args=(run, task, end, self.log), daemon=True)
        self.process.start()
        end.close()  # so that a process that ends is seen here

    def wait(self) -> Any:
        """Wait for the report of the step that was asked for last."""
        try:
            return self.pipe.recv()
        except EOFError:
            self.process.join()
            raise RuntimeError(
                f"{self.log.stem} ended early, with code {self.process.exitcode} (-9: out of "
                f"memory), and these words:\n{self.log.read_text()[-2000:]}"
            ) from None

    def step(self) -> Step:
        """Take one step."""
        self.pipe.send(None)
        return self.wait()


def logged(run: Callable[..., None], task: Task, pipe: Any, log: Path) -> None:
    """Run a worker with all that it prints in a file."""
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    run(task, pipe)


@contextmanager
def sides(task: Task) -> Iterator[tuple[Side, Side]]:
    """Start ours and theirs, and end both."""
    pair = Side(run_ours, replace(task, fixed=False)), Side(run_theirs, task)
    try:
        for side in pair:
            side.wait()
        yield pair
    finally:
        for side in pair:
            side.process.kill()  # in the middle of an epoch, with nothing to save
            side.process.join()


def compare(task: Task) -> list[tuple[list[Step], list[Step]]]:
    """Train both sides in turn; give each round's steps, ours and theirs."""
    batches = ROWS // task.batch
    with sides(task) as pair:
        for _ in range(WARMUP):
            for side in pair:
                side.step()
        rounds = []
        for place in range(task.rounds):
            steps: tuple[list[Step], list[Step]] = ([], [])
            for turn in range(len(range(place, batches, task.of))):
                # Neither side always follows the other.
                for which in (0, 1) if turn % 2 == 0 else (1, 0):
                    # What is padded to one length takes one time: two steps tell.
                    if not (which and task.fixed and turn >= 2):
                        steps[which].append(pair[which].step())
            rounds.append(steps)
            logger.info("round %d: %s", place + 1, "  ".join(describe(each) for each in steps))
    return rounds


def describe(steps: Sequence[Step]) -> str:
    """Say in a few words what a side did."""
    return f"{len(steps)} steps in {sum(step.seconds for step in steps):.1f} s"


def summarise(rounds: Sequence[tuple[list[Step], list[Step]]], fixed: bool) -> dict[str, Any]:
    """Work out the rates and their ratio.

    Real tokens are counted, but against fixed padding rows: its batches take the same time whatever
    they hold, and only a few of them are taken.
    """
    count = "rows" if fixed else "real"

    def rate(steps: Sequence[Step], what: str) -> float:
        return sum(getattr(step, what) for step in steps) / sum(step.seconds for step in steps)

    ratios = [rate(ours, count) / rate(theirs, count) for ours, theirs in rounds]
    every = [[step for steps in side for step in steps] for side in zip(*rounds, strict=True)]
    summary: dict[str, Any] = {
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "steps": [len(side) for side in every],
    }
    for name, steps in zip(("ours", "theirs"), every, strict=True):
        summary[name] = {
            "rows_per_s": rate(steps, "rows"),
            "tokens_per_s": rate(steps, "real"),
            "efficiency": sum(step.real for step in steps) / sum(step.padded for step in steps),
            "peak_gib": max(step.peak for step in steps),
        }
    return summary


def show(results: Sequence[dict[str, Any]], console: Console) -> None:
    """Print a row for each comparison."""
    table = Table(
        "method", "precision", "their padding", "examples/s", "real tokens/s", "real share",
        "peak GiB", "times as fast", "in the rounds", "wanted",
        title="Training throughput: ours / transformers.Seq2SeqTrainer",
    )  # fmt: skip
    for result in results:
        low, high, least = min(result["ratios"]), max(result["ratios"]), LEAST[result["padding"]]
        table.add_row(
            result["method"], result["precision"], result["padding"],
            *(
                " / ".join(format(result[side][name], form) for side in ("ours", "theirs"))
                for name, form in FIGURES.items()
            ),
            f"{result['ratio']:.2f}", f"{low:.2f} to {high:.2f}",
            f"{least}: {'yes' if result['ratio'] >= least else 'NO'}",
        )  # fmt: skip
    console.print(table)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sft_throughput")
    parser.add_argument("--methods", nargs="+", choices=("full", "lora"), default=["full", "lora"])
    parser.add_argument(
        "--precisions", nargs="+", choices=("32-true", "bf16-mixed"),
        default=["32-true", "bf16-mixed"],
    )  # fmt: skip
    parser.add_argument("--paddings", nargs="+", choices=tuple(LEAST), default=list(LEAST))
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each comparison")
    parser.add_argument("--of", type=int, default=8, help="rounds that would be a whole epoch")
    parser.add_argument("--batch", type=int, default=8, help="rows of a batch")
    parser.add_argument("--out", type=Path, help="also write all numbers to this JSON file")
    options = parser.parse_args(arguments)
    if options.batch < 1 or ROWS % options.batch:
        parser.error(f"--batch must divide {ROWS}, the rows of an epoch")
    if not 1 <= options.rounds <= options.of <= ROWS // options.batch:
        parser.error(f"it takes 1 <= rounds <= of <= {ROWS // options.batch}")
    return options


def set_environment(console: Console) -> None:
    """Set what both sides start with, and print it."""
    os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))
    os.environ.setdefault("OMP_PROC_BIND", "true")
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", WANDB_MODE="offline")
    names = ("OMP_NUM_THREADS", "OMP_PROC_BIND", "OMP_WAIT_POLICY")
    console.print("  ".join(f"{name}={os.environ.get(name, '(unset)')}" for name in names))


def main(arguments: Sequence[str]) -> int:
    """Compare, and give 1 if a ratio is lower than it has to be."""
    options = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    console = Console(width=160)
    set_environment(console)
    results = []
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name), FOLDER)
        for method in options.methods:
            for precision in options.precisions:
                for padding in options.paddings:
                    console.print(f"{method}, {precision}, against {padding} padding")
                    fixed = padding == "fixed"
                    task = Task(
                        Path(name), method, precision, fixed, options.rounds, options.of,
                        options.batch,
                    )  # fmt: skip
                    summary = summarise(compare(task), fixed)
                    what = {"method": method, "precision": precision, "padding": padding}
                    results.append({**what, **summary})
                    show(results[-1:], console)
    show(results, console)
    if options.out is not None:
        options.out.write_text(json.dumps(results, indent=1))
    return int(any(result["ratio"] < LEAST[result["padding"]] for result in results))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
