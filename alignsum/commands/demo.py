"""Train, test and compare every method, on the embedded miniature or on real text.

    python -m alignsum demo                     # into runs/demo: `make demo`
    python -m alignsum demo --quick             # a few batches of everything: does it run?
    python -m alignsum demo --only lora ppo     # these steps
    python -m alignsum demo --feedback          # also learn from simulated annotators' rankings
    python -m alignsum demo --real              # pretrained models, DialogSum: `make real`
    python -m alignsum demo --real --rows 300   # the same with 300 dialogues

Each step consists of commands that anyone can type; they and their output are in ROOT/<step>.log.
On the miniature they run in this process, so the libraries are imported once. Finished steps are
skipped, so the same command continues an interrupted demo.
"""

import contextlib
import gc
import importlib
import logging
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alignsum import real_text
from alignsum.commands.options import make_parser
from common.exits import run, start_log, suggest
from common.run_folder import RunFolder

log = logging.getLogger("demo")

BASELINES = ("human", "lead_3")
"""Rows without a model: see alignsum/commands/baselines.py."""

METHODS = {
    "zero_shot": "in_context --data.shots 0",
    "one_shot": "in_context --data.shots 1",
    "few_shot": "in_context --data.shots 3",
    "full_ft": "full_ft",
    "lora": "lora",
    "soft_prompt": "soft_prompt",
    "reward": "reward",
    "ppo": "ppo --config configs/overlays/rollouts.yaml --model.adapter {root}/lora/export",
    # Learn from rankings of the LoRA's summaries, with a reward model or without one. The reward
    # model learns from some hundreds of rankings instead of 2,000.
    "reward_feedback": "reward --data.source {root}/feedback/answers.jsonl --data.batch_size 4 "
    "--trainer.max_epochs 4 --model.optimizer.init_args.lr 3e-4",
    "ppo_feedback": "ppo --model.adapter {root}/lora/export "
    "--model.reward_model {root}/reward_feedback/export",
    "dpo": "dpo --model.adapter {root}/lora/export --data.source {root}/feedback/answers.jsonl",
}
"""Config of each run and further settings, in the order of the comparison."""

TABLE = (*BASELINES, *METHODS)
"""All runs in the order of the comparison."""

FEEDBACK = ("feedback", "reward_feedback", "ppo_feedback", "dpo")
"""Steps that learn from rankings; the first only makes the rankings."""

FIRST = ("zero_shot", *BASELINES, "one_shot", "few_shot", "lora", "ppo")
STEPS = (*FIRST, *(name for name in METHODS if name not in FIRST + FEEDBACK), *FEEDBACK)
"""All steps in their order: first results come early."""

RANKED, QUICKLY_RANKED = 500, 24
"""Number of dialogues that are ranked; the second with ``--quick``."""

COMPLETIONS = 8
"""Completions of each ranked dialogue: 28 pairs a ranking."""


def make_commands(name: str, root: str, seed: int = 42, quick: bool = False) -> list[list[str]]:
    """Return the commands of a step, each a module with a `main` and its arguments.

    Args:
        name: One of STEPS.
        root: Folder of the run folders.
        seed: Seed of everything random in the step.
        quick: Use a few batches only.
    """

    def fill(text: str) -> list[str]:
        return [part.format(root=root) for part in text.split()]

    if name in BASELINES:
        text = "--source mini --out {root} --toxicity mini --overwrite true "
        text += "--max_test_rows 64" if quick else ""
        return [["alignsum.commands.baselines", name, *fill(text)]]
    if name == "feedback":
        samples, rows = "{root}/feedback/samples.jsonl", QUICKLY_RANKED if quick else RANKED
        sample = f"{{root}}/lora --input mini --split train --max_rows {rows} --output {samples} "
        sample += f"--completions {COMPLETIONS} --seed {seed} --overwrite true"
        rank = f"{samples} --out {{root}}/feedback/answers.jsonl --seed {seed} --overwrite"
        return [
            ["alignsum.commands.rank", "sample", *fill(sample)],
            ["collecting.simulated_annotators", *fill(rank)],
        ]
    config, _, settings = METHODS[name].partition(" ")
    text = f"--config configs/{config}.yaml --config configs/overlays/mini.yaml {settings} "
    if quick:
        text += "--config configs/overlays/debug.yaml "
        if config != "in_context":  # which has no epoch
            text += "--trainer.max_epochs 1 --trainer.check_val_every_n_epoch 1 "
            text += "--trainer.val_check_interval 1.0 "
    text += f"--run_dir {{root}}/{name} --seed_everything {seed} --overwrite true"
    stages = ("test",) if config == "in_context" else ("fit", "test")
    return [["train", stage, *fill(text)] for stage in stages]


def run_one(commands: Sequence[Sequence[str]]) -> int:
    """Run commands in this process until one fails; return its exit code, or 0."""
    for module, *arguments in commands:
        try:
            code = importlib.import_module(module).main(arguments)
        except SystemExit as stop:
            code = stop.code
        gc.collect()  # the Trainer's reference cycles hold the models
        if code:
            return int(code)
    return 0


def run_apart(commands: Sequence[Sequence[str]], log_file: Any) -> int:
    """Run commands in processes of their own, whose memory is returned, until one fails."""
    call = (
        "import importlib, sys; sys.exit(importlib.import_module(sys.argv[1]).main(sys.argv[2:]))"
    )
    for command in commands:
        log_file.flush()
        done = subprocess.run(  # noqa: S603 - modules of this package
            [sys.executable, "-c", call, *command],
            stdout=log_file,
            stderr=log_file,
            env=os.environ
            | {
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                "PYTHONUNBUFFERED": "1",  # so that the log can be followed
            },
        )
        if done.returncode:
            return done.returncode
    return 0


def show(command: Sequence[str]) -> str:
    """Return a command of :func:`make_commands` as it is typed."""
    module, *arguments = command
    name = "train.py" if module == "train" else f"-m {module}"
    name = name.replace("alignsum.commands.", "alignsum ")
    return f"python {name} {shlex.join(arguments)}"


def run_step(name: str, root: Path, commands: Sequence[Sequence[str]], apart: bool = False) -> str:
    """Run a step with its output in a file; return its main results.

    Args:
        name: The step.
        root: Folder of the run folders.
        commands: See :func:`make_commands`.
        apart: Run each command in its own process.

    Raises:
        ValueError: If the step fails; shows the end of its log.
    """
    path, began = root / f"{name}.log", time.monotonic()
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        path.open("w", encoding="utf-8") as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
    ):
        for command in commands:
            log.info("$ %s", show(command))
        code = run_apart(commands, file) if apart else run_one(commands)
    if code:
        tail = "\n".join(path.read_text(encoding="utf-8").splitlines()[-8:])
        raise ValueError(f"{name} failed with exit code {code}; the end of {path}:\n{tail}")
    metrics = RunFolder(root / name).read_summary().get("metrics", {})
    titles = {"rouge1": "ROUGE-1", "toxicity": "toxicity", "accuracy": "accuracy"}
    found = [
        f"{title} {100 * metrics[f'test/{key}']['value']:.1f}"
        for key, title in titles.items()
        if f"test/{key}" in metrics
    ]
    return f"{', '.join(found) or 'done'} ({time.monotonic() - began:.0f} s)"


def is_finished(name: str, root: Path) -> bool:
    """Return whether a step has written its last file."""
    last = {"feedback": "answers.jsonl", real_text.INPUTS: real_text.DONE}
    return (root / name / last.get(name, "predictions.jsonl")).is_file()


def choose_steps(options: Any) -> tuple[list[str], Sequence[str]]:
    """Return the steps that were asked for, and the order of the comparison.

    Raises:
        ValueError: If a step does not exist, or lacks packages or data.
    """
    steps, table = (real_text.STEPS, real_text.TABLE) if options.real else (STEPS, TABLE)
    if unknown := [name for name in options.only or () if name not in steps]:
        hint = suggest(unknown[0], steps)
        raise ValueError(f"--only: no step {unknown[0]!r}{hint}; steps: {', '.join(steps)}")
    if options.real:
        return real_text.choose(options.only), table
    default = [name for name in steps if options.feedback or name not in FEEDBACK]
    return [name for name in steps if name in (options.only or default)], table


def main(args: Sequence[str]) -> int:
    """Run the steps and the comparison; return the exit code (see common/exits.py)."""
    parser = make_parser("demo", __doc__ or "")
    add: Any = parser.add_argument
    add("--only", nargs="+", metavar="STEP", help=f"of {', '.join(STEPS)}; see --real")
    add("--root", help="folder of the run folders (runs/demo, runs/demo_quick or runs/real)")
    add("--seed", type=int, default=42, help="choose another --root for another seed")
    add("--quick", action="store_true", help="a few batches of everything")
    add("--feedback", action="store_true", help=f"also {', '.join(FEEDBACK)}")
    add("--real", action="store_true", help=f"real text: {', '.join(real_text.STEPS)}")
    add("--rows", type=int, help="with --real: train and test on this many dialogues at most")
    add("--overwrite", action="store_true", help="repeat finished steps")
    options = parser.parse_args(args)
    start_log()

    def work() -> int:
        from rich.console import Console

        chosen, table = choose_steps(options)
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        started, console = time.monotonic(), Console(soft_wrap=True, highlight=False)
        default = "real" if options.real else "demo_quick" if options.quick else "demo"
        root = Path(options.root or f"runs/{default}")
        steps = [name for name in chosen if options.overwrite or not is_finished(name, root)]
        if skipped := [name for name in chosen if name not in steps]:
            console.print(f"finished earlier (--overwrite repeats them): {', '.join(skipped)}")
        for number, name in enumerate(steps, start=1):
            console.print(f"{number} of {len(steps)}: {name}", style="bold")
            if options.real:
                commands = real_text.make_commands(name, str(root), options.seed, options.rows)
            else:
                commands = make_commands(name, str(root), options.seed, options.quick)
            console.print(f"   {run_step(name, root, commands, options.real)}", style="green")
            if options.real and number < len(steps):
                part = real_text.share_done(steps, number)
                left = (time.monotonic() - started) * (1 - part) / part
                console.print(f"   about {left / 60:.0f} minutes are left")
        runs = [f"{root}/{name}" for name in table if is_finished(name, root)]
        code = run_one([["alignsum.commands.compare", *runs, "--out", f"{root}/report"]])
        minutes = (time.monotonic() - started) / 60
        console.print(f"{minutes:.1f} minutes; open {root}/report/report.html", style="bold")
        return code

    return run(work, log, "interrupted; the same command continues")
