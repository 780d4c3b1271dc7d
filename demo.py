"""The whole story in one command: every method trained, tested and compared in one table.

    python -m demo                            # on the miniature, into runs/demo: `make demo`
    python -m demo lora ppo                   # these only, in this order
    python -m demo --source data/dialogsum --root runs/real
    python -m demo --quick --root /tmp/try    # a few batches of everything: does it run?

With ``--source`` the miniature's models read real dialogues: any source of ``--data.source``. The
reward model keeps the miniature's rankings, for other data have none; and what learns from rankings
of the LoRA's own completions is left out, for the simulated annotators know the miniature only.

Every run is one or two commands that anyone can type; they are printed before they run. Fit and
test of a run share one process, and every run has its own, so that its peak memory is its own.
"""

import argparse
import importlib
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console

BASELINES = ("human", "lead_3")
"""Rows that no model makes: see baselines.py."""

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
    # From rankings of what that LoRA says: by a reward model of one's own, or without one.
    "reward_ranked": ["reward", "--data.source", "{root}/ranked/answers.jsonl"],
    "ppo_ranked": [
        "ppo", "--model.adapter", "{root}/lora/export",
        "--model.reward_model", "{root}/reward_ranked/export",
    ],
    "dpo": [
        "dpo", "--model.adapter", "{root}/lora/export",
        "--data.source", "{root}/ranked/answers.jsonl",
    ],
}  # fmt: skip
"""Name of each run, its config and further settings."""

RUNS = (*BASELINES, *METHODS)
"""All runs, in the order of the table."""

RANKED = ("ranked", "reward_ranked", "ppo_ranked", "dpo")
"""The road from rankings, of the miniature only; its first step makes the rankings."""

STEPS = tuple(
    step for run in RUNS for step in (["ranked", run] if run == "reward_ranked" else [run])
)
"""All that is done, in its order."""

RANKED_DIALOGUES = 300

console = Console(soft_wrap=True)


def make_commands(
    name: str, root: str, seed: int = 42, source: str = "mini", quick: bool = False
) -> list[list[str]]:
    """Give the commands of a run, each the arguments of ``python``.

    Args:
        name: One of STEPS.
        root: Folder of the run folders.
        seed: Seed of everything random in the run.
        source: Where the dialogues come from.
        quick: A few batches only.
    """
    # The demo's folder is the demo's: a second demo replaces the first.
    overwrite = ["--overwrite", "true"]
    if name in BASELINES:
        limit = ["--max_test_rows", "64"] if quick else []
        data = ["--source", source, "--out", root, "--toxicity", "mini"]
        return [["baselines.py", name, *data, *limit, *overwrite]]
    if name == "ranked":
        return make_rankings(root, seed, 24 if quick else RANKED_DIALOGUES)
    config, *options = METHODS[name]
    configs = [f"configs/{config}.yaml", "configs/overlays/mini.yaml"]
    if source != "mini" and name != "reward":
        configs.append("configs/overlays/real_text.yaml")
        options += ["--data.source", source]
    if quick:
        configs.append("configs/overlays/debug.yaml")
        if config != "in_context":  # which has no epoch at all
            options += ["--trainer.max_epochs", "1", "--trainer.check_val_every_n_epoch", "1"]
            options += ["--trainer.val_check_interval", "1.0"]
    settings = [part for path in configs for part in ("--config", path)]
    settings += [option.format(root=root) for option in options]
    settings += ["--run_dir", str(Path(root) / name), "--seed_everything", str(seed), *overwrite]
    return [["train.py", command, *settings] for command in ("fit", "test")]


def make_rankings(root: str, seed: int, dialogues: int) -> list[list[str]]:
    """Give the commands that sample from the LoRA, and have simulated annotators rank that."""
    samples, answers = (f"{root}/ranked/{name}.jsonl" for name in ("samples", "answers"))
    sample = [
        "feedback.py", "sample", f"{root}/lora", "--input", "mini", "--output", samples,
        "--max_rows", str(dialogues), "--seed", str(seed), "--overwrite", "true",
    ]  # fmt: skip
    annotate = [
        "-m", "datamodules.mini.annotate", samples, "--out", answers, "--seed", str(seed),
        "--overwrite",
    ]  # fmt: skip
    return [sample, annotate]


def run_one(commands: list[list[str]]) -> int:
    """Run commands in this process, one after the other, until one fails; give its exit code."""
    for command in commands:
        console.print(f"$ python {' '.join(command)}", style="cyan", markup=False)
        program, *arguments = command
        if program == "-m":
            program, *arguments = arguments
        # Imported here: it takes seconds, and the parent process has no use for it.
        if code := importlib.import_module(program.removesuffix(".py")).main(arguments):
            return code
    return 0


def main(arguments: list[str]) -> int:
    """Run the named methods, or all, each in a process of its own, then compare them.

    Returns:
        0, or the exit code of the first command that failed.
    """
    parser = argparse.ArgumentParser(description="Every method, tested and compared in one table.")
    known = f"of {', '.join(STEPS)}; all if none"
    parser.add_argument("runs", nargs="*", metavar="RUN", help=known)
    parser.add_argument("--root", default="runs/demo", help="folder of the run folders")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--source", default="mini", help="dialogues: mini, a folder or a hub id")
    parser.add_argument("--quick", action="store_true", help="a few batches of everything")
    options = parser.parse_args(arguments)
    if unknown := set(options.runs) - set(STEPS):
        parser.error(f"no such run: {', '.join(sorted(unknown))}; there are {', '.join(STEPS)}")
    real = options.source != "mini"
    if real and (alien := [name for name in options.runs if name in RANKED]):
        parser.error(f"{', '.join(alien)}: the simulated annotators know the miniature only")
    started = time.monotonic()
    chosen = options.runs or [name for name in STEPS if not (real and name in RANKED)]
    for place, name in enumerate(chosen, start=1):
        console.rule(f"[bold]{place} of {len(chosen)}: {name}")
        commands = make_commands(name, options.root, options.seed, options.source, options.quick)
        program = f"import sys, demo; sys.exit(demo.run_one({commands!r}))"
        if code := subprocess.call([sys.executable, "-c", program]):  # noqa: S603
            console.print(f"{name} failed with exit code {code}", style="red")
            return code
    console.rule("[bold]comparison")
    runs = [f"{options.root}/{name}" for name in RUNS if Path(options.root, name).is_dir()]
    report = ["report.py", "compare", *runs, "--out", f"{options.root}/report"]
    code = subprocess.call([sys.executable, *report])  # noqa: S603
    minutes = (time.monotonic() - started) / 60
    console.print(f"{minutes:.1f} minutes in all; open {options.root}/report/report.html")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
