"""The whole story in one command: every method trained, tested and compared in one table.

    python -m demo                            # on the miniature, into runs/demo: `make demo`
    python -m demo lora ppo                   # these only, in this order
    python -m demo --source data/dialogsum --root runs/real
    python -m demo --quick --root /tmp/try    # a few batches of everything: does it run?

The last rows walk the road of feedback: completions are drawn from the LoRA, simulated annotators
rank them, and a reward model and PPO by it learn from the rankings, or DPO does so directly.

With ``--source`` the miniature's models read real dialogues: any source of ``--data.source``. The
reward model keeps the miniature's rankings, for other data have none; and the road of feedback is
left out, for the simulated annotators know the miniature only.

Every step is one or two commands that anyone can type; they are printed before they run. Fit and
test of a run share one process, and every run has its own, so that its peak memory is its own.
"""

import argparse
import importlib
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

BASELINES = ("human", "lead_3")
"""Rows that no model makes: see baselines.py."""

FEW_RANKINGS = [
    "--data.batch_size", "4", "--trainer.max_epochs", "4",
    "--model.optimizer.init_args.lr", "3e-4",
]  # fmt: skip
"""How a reward model learns from some hundreds of rankings; those of the miniature are 2,000."""

METHODS: dict[str, list[str]] = {
    "zero_shot": ["in_context", "--data.shots", "0"],
    "one_shot": ["in_context", "--data.shots", "1"],
    "few_shot": ["in_context", "--data.shots", "3"],
    "full_ft": ["full_ft"],
    "lora": ["lora"],
    "soft_prompt": ["soft_prompt"],
    "reward": ["reward"],
    # PPO goes on from the LoRA that was just tuned.
    "ppo": ["ppo", "--model.adapter", "{root}/lora/export"],
    # From rankings of what that LoRA says: by a reward model of their own, or without one.
    "reward_feedback": ["reward", "--data.source", "{root}/feedback/answers.jsonl", *FEW_RANKINGS],
    "ppo_feedback": [
        "ppo", "--model.adapter", "{root}/lora/export",
        "--model.reward_model", "{root}/reward_feedback/export",
    ],
    "dpo": [
        "dpo", "--model.adapter", "{root}/lora/export",
        "--data.source", "{root}/feedback/answers.jsonl",
    ],
}  # fmt: skip
"""Name of each run, its config and further settings."""

RUNS = (*BASELINES, *METHODS)
"""All runs, in the order of the table."""

FEEDBACK = ("feedback", "reward_feedback", "ppo_feedback", "dpo")
"""The road of feedback, on the miniature only. Its first step is no run: it makes the rankings."""

STEPS = (*(run for run in RUNS if run not in FEEDBACK), *FEEDBACK)
"""All that is done, in its order."""

RANKED, QUICKLY_RANKED = 500, 24
"""Dialogues that are ranked, and of them with ``--quick``."""

COMPLETIONS = 8
"""Of each dialogue that is ranked: 28 pairs a ranking."""

console = Console(soft_wrap=True)


def make_commands(
    name: str, root: str, seed: int = 42, source: str = "mini", quick: bool = False
) -> list[list[str]]:
    """Give the commands of a step, each the arguments of ``python``.

    Args:
        name: One of STEPS.
        root: Folder of the run folders.
        seed: Seed of everything random in the step.
        source: Where the dialogues come from.
        quick: A few batches only.
    """
    if name in BASELINES:
        limit = ["--max_test_rows", "64"] if quick else []
        data = ["--source", source, "--out", root, "--toxicity", "mini"]
        return [["alignsum.commands.baselines.py", name, *data, *limit, "--overwrite", "true"]]
    if name == "feedback":
        samples, answers = (Path(root, name, f"{part}.jsonl") for part in ("samples", "answers"))
        rows = QUICKLY_RANKED if quick else RANKED
        return sample_and_rank(Path(root, "lora"), samples, answers, rows, seed)
    config, *options = METHODS[name]
    overlays = ["mini"]
    if source != "mini" and name != "reward":
        overlays.append("real_text")
        options += ["--data.source", source]
    if quick:
        overlays.append("debug")
        if config != "in_context":  # which has no epoch at all
            options += ["--trainer.max_epochs", "1", "--trainer.check_val_every_n_epoch", "1"]
            options += ["--trainer.val_check_interval", "1.0"]
    settings = [option.format(root=root) for option in options]
    return fit_and_test(config, Path(root, name), seed, settings, overlays)


def fit_and_test(
    config: str,
    run_dir: Path,
    seed: int,
    settings: Sequence[str] = (),
    overlays: Sequence[str] = ("mini",),
) -> list[list[str]]:
    """Give the commands that fit and test a config; a run that is there already is replaced."""
    paths = [f"configs/{config}.yaml", *(f"configs/overlays/{name}.yaml" for name in overlays)]
    arguments = [part for path in paths for part in ("--config", path)]
    arguments += [*settings, "--run_dir", str(run_dir)]
    arguments += ["--seed_everything", str(seed), "--overwrite", "true"]
    return [["train.py", command, *arguments] for command in ("fit", "test")]


def sample_and_rank(
    run: Path,
    samples: Path,
    answers: Path,
    rows: int,
    seed: int,
    split: str = "train",
    completions: int = COMPLETIONS,
    annotators: Sequence[str] = (),
) -> list[list[str]]:
    """Give the commands that sample from a run, and have simulated annotators rank the samples.

    Args:
        run: A run folder with an export.
        samples: File of completions to write.
        answers: File of rankings to write.
        rows: How many dialogues of the miniature.
        seed: Seed of the sampling and of the annotators' mistakes.
        split: Of which split they are.
        completions: Of each dialogue.
        annotators: Further options of the annotators.
    """
    sample = [
        "-m", "alignsum", "rank", "sample", str(run), "--input", "mini", "--split", split,
        "--max_rows", str(rows), "--completions", str(completions), "--output", str(samples),
        "--seed", str(seed), "--overwrite", "true",
    ]  # fmt: skip
    rank = ["-m", "collecting.simulated_annotators", str(samples), "--out", str(answers)]
    return [sample, [*rank, "--seed", str(seed), "--overwrite", *annotators]]


def run_one(commands: list[list[str]]) -> int:
    """Run commands in this process, one after the other, until one fails; give its exit code."""
    for command in commands:
        show(command)
        program, *arguments = command
        if program == "-m":
            program, *arguments = arguments
            program = "alignsum.__main__" if program == "alignsum" else program
        # Imported here: it takes seconds, and the parent process has no use for it.
        if code := importlib.import_module(program.removesuffix(".py")).main(arguments):
            return code
    return 0


def show(command: Sequence[str]) -> None:
    """Print a command as one types it."""
    console.print(f"$ python {' '.join(command)}", style="cyan", markup=False)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; `steps` are those named, or all that there are for the source."""
    parser = argparse.ArgumentParser(description="Every method, tested and compared in one table.")
    known = f"of {', '.join(STEPS)}; all if none"
    parser.add_argument("steps", nargs="*", metavar="RUN", help=known)
    parser.add_argument("--root", default="runs/demo", help="folder of the run folders, replaced")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--source", default="mini", help="dialogues: mini, a folder or a hub id")
    parser.add_argument("--quick", action="store_true", help="a few batches of everything")
    options = parser.parse_args(arguments)
    if unknown := set(options.steps) - set(STEPS):
        parser.error(f"no such run: {', '.join(sorted(unknown))}; there are {', '.join(STEPS)}")
    real = options.source != "mini"
    if real and (alien := [name for name in options.steps if name in FEEDBACK]):
        parser.error(f"{', '.join(alien)}: the simulated annotators know the miniature only")
    options.steps = options.steps or [s for s in STEPS if not (real and s in FEEDBACK)]
    return options


def main(arguments: list[str]) -> int:
    """Take the named steps, or all, each in a process of its own, then compare the runs.

    Returns:
        0, or the exit code of the first command that failed.
    """
    options = parse(arguments)
    started = time.monotonic()
    for place, name in enumerate(options.steps, start=1):
        console.rule(f"[bold]{place} of {len(options.steps)}: {name}")
        commands = make_commands(name, options.root, options.seed, options.source, options.quick)
        program = f"import sys, demo; sys.exit(demo.run_one({commands!r}))"
        if code := subprocess.call([sys.executable, "-c", program]):  # noqa: S603
            console.print(f"{name} failed with exit code {code}", style="red")
            return code
    console.rule("[bold]comparison")
    runs = [f"{options.root}/{name}" for name in RUNS if Path(options.root, name).is_dir()]
    report = ["report.py", "compare", *runs, "--out", f"{options.root}/report"]
    show(report)
    code = subprocess.call([sys.executable, *report])  # noqa: S603
    minutes = (time.monotonic() - started) / 60
    console.print(f"{minutes:.1f} minutes in all; open {options.root}/report/report.html")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
