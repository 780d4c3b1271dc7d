"""Train, test and compare every method on the embedded miniature.

    python -m alignsum demo                     # into runs/demo: `make demo`
    python -m alignsum demo --quick             # a few batches of everything: does it run?
    python -m alignsum demo --only lora ppo     # these steps
    python -m alignsum demo --feedback          # also learn from simulated annotators' rankings
    python -m alignsum demo --source data/dialogsum --root runs/real

All steps run in this process, so the libraries are imported once. Each consists of commands that
anyone can type; they and their output are in ROOT/<step>.log. Finished steps are skipped, so the
same command continues an interrupted demo. With ``--source`` the miniature's models train on other
dialogues; the reward model keeps the miniature's rankings.
"""

import argparse
import contextlib
import gc
import importlib
import json
import logging
import os
import shlex
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common.exits import run, start_log
from common.run_folder import RunFolder, write_text

if TYPE_CHECKING:
    from rich.console import Console

log = logging.getLogger("demo")

BASELINES = ("human", "lead_3")
"""Rows without a model: see alignsum/commands/baselines.py."""

FEW_RANKINGS = "--data.batch_size 4 --trainer.max_epochs 4 --model.optimizer.init_args.lr 3e-4"
"""Settings of a reward model that learns from some hundreds of rankings instead of 2,000."""

METHODS = {
    "zero_shot": "in_context --data.shots 0",
    "one_shot": "in_context --data.shots 1",
    "few_shot": "in_context --data.shots 3",
    "full_ft": "full_ft",
    "lora": "lora",
    "soft_prompt": "soft_prompt",
    "reward": "reward",
    "ppo": "ppo --model.adapter {root}/lora/export",
    # Learn from rankings of the LoRA's summaries, with a reward model or without one.
    "reward_feedback": f"reward --data.source {{root}}/feedback/answers.jsonl {FEW_RANKINGS}",
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


def make_commands(
    name: str, root: str, seed: int = 42, source: str = "mini", quick: bool = False
) -> list[list[str]]:
    """Return the commands of a step, each a module with a `main` and its arguments.

    Args:
        name: One of STEPS.
        root: Folder of the run folders.
        seed: Seed of everything random in the step.
        source: Where the dialogues come from.
        quick: Use a few batches only.
    """
    if name in BASELINES:
        options = ["--source", source, "--out", root, "--toxicity", "mini", "--overwrite", "true"]
        options += ["--max_test_rows", "64"] if quick else []
        return [["alignsum.commands.baselines", name, *options]]
    if name == "feedback":
        samples, answers = (Path(root, name, f"{part}.jsonl") for part in ("samples", "answers"))
        rows = QUICKLY_RANKED if quick else RANKED
        return sample_and_rank(Path(root, "lora"), samples, answers, rows, seed)
    config, *settings = (part.format(root=root) for part in METHODS[name].split())
    overlays = ["mini", *(["rollouts"] if config == "ppo" else [])]
    if source != "mini" and name != "reward":
        overlays.append("real_text")
        settings += ["--data.source", source]
    if quick:
        overlays.append("debug")
        if config != "in_context":  # which has no epoch
            settings += ["--trainer.max_epochs", "1", "--trainer.check_val_every_n_epoch", "1"]
            settings += ["--trainer.val_check_interval", "1.0"]
    return fit_and_test(config, Path(root, name), seed, settings, overlays)


def fit_and_test(
    config: str,
    run_dir: Path,
    seed: int,
    settings: Sequence[str] = (),
    overlays: Sequence[str] = ("mini",),
) -> list[list[str]]:
    """Return the commands that fit and test a config and replace an earlier run."""
    paths = [f"configs/{config}.yaml", *(f"configs/overlays/{name}.yaml" for name in overlays)]
    arguments = [part for path in paths for part in ("--config", path)]
    arguments += [*settings, "--run_dir", str(run_dir)]
    arguments += ["--seed_everything", str(seed), "--overwrite", "true"]
    return [["train", command, *arguments] for command in ("fit", "test")]


def sample_and_rank(
    run_dir: Path,
    samples: Path,
    answers: Path,
    rows: int,
    seed: int,
    split: str = "train",
    completions: int = COMPLETIONS,
    annotators: Sequence[str] = (),
) -> list[list[str]]:
    """Return the commands that sample from a run and let simulated annotators rank the samples.

    Args:
        run_dir: A run folder with an export.
        samples: File of completions to write.
        answers: File of rankings to write.
        rows: Number of the miniature's dialogues.
        seed: Seed of the sampling and of the annotators' mistakes.
        split: Split of the dialogues.
        completions: Number per dialogue.
        annotators: Further options of the annotators.
    """
    sample = f"--input mini --split {split} --max_rows {rows} --completions {completions}".split()
    sample += ["--output", str(samples), "--seed", str(seed), "--overwrite", "true"]
    rank = [str(samples), "--out", str(answers), "--seed", str(seed), "--overwrite", *annotators]
    return [
        ["alignsum.commands.rank", "sample", str(run_dir), *sample],
        ["collecting.simulated_annotators", *rank],
    ]


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


def show(command: Sequence[str]) -> str:
    """Return a command of :func:`make_commands` as it is typed."""
    module, *arguments = command
    name = "train.py" if module == "train" else f"-m {module}"
    name = name.replace("alignsum.commands.", "alignsum ")
    return f"python {name} {shlex.join(arguments)}"


def run_steps(options: argparse.Namespace, console: "Console") -> None:
    """Run the steps that are not finished, and report each in two lines.

    Raises:
        ValueError: If a step fails; names its log.
    """
    root = Path(options.root)
    steps = [name for name in options.steps if options.overwrite or not is_finished(name, root)]
    if skipped := [name for name in options.steps if name not in steps]:
        console.print(f"finished earlier (--overwrite repeats them): {', '.join(skipped)}")
    for number, name in enumerate(steps, start=1):
        console.print(f"{number} of {len(steps)}: {name}", style="bold")
        commands = make_commands(name, options.root, options.seed, options.source, options.quick)
        path, began = root / f"{name}.log", time.monotonic()
        with output_to(path):
            for command in commands:
                log.info("$ %s", show(command))
            code = run_one(commands)
        if code:
            tail = "\n".join(path.read_text(encoding="utf-8").splitlines()[-8:])
            raise ValueError(f"{name} failed with exit code {code}; the end of {path}:\n{tail}")
        result = f"{describe_result(name, root) or 'done'} ({time.monotonic() - began:.0f} s)"
        console.print(f"   {result}", style="green")


def is_finished(name: str, root: Path) -> bool:
    """Return whether a step has written its last file."""
    last = "answers.jsonl" if name == "feedback" else "predictions.jsonl"
    return (root / name / last).is_file()


def describe_result(name: str, root: Path) -> str:
    """Return a step's main test metrics, times 100."""
    metrics = RunFolder(root / name).read_summary().get("metrics", {})
    titles = {"rouge1": "ROUGE-1", "toxicity": "toxicity", "accuracy": "accuracy"}
    return ", ".join(
        f"{title} {100 * metrics[f'test/{key}']['value']:.1f}"
        for key, title in titles.items()
        if f"test/{key}" in metrics
    )


@contextlib.contextmanager
def output_to(path: Path) -> Iterator[None]:
    """Write everything that a step prints to a file."""
    with (
        path.open("w", encoding="utf-8") as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
    ):
        yield


def check_root(options: argparse.Namespace) -> None:
    """Refuse to mix runs of different settings in one folder, and record the settings.

    Raises:
        ValueError: If the folder holds a demo with other settings.
    """
    path = Path(options.root, "demo.json")
    settings = {"seed": options.seed, "source": options.source, "quick": options.quick}
    if path.is_file() and not options.overwrite:
        earlier = json.loads(path.read_text(encoding="utf-8"))
        if earlier != settings:
            raise ValueError(
                f"{options.root} holds a demo with {earlier}; choose another folder with --root, "
                "or replace it with --overwrite"
            )
    write_text(path, json.dumps(settings))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; `steps` of the result are the steps to run, in order."""
    parser = argparse.ArgumentParser(
        prog="alignsum demo", description=(__doc__ or "").partition("\n")[0]
    )
    add = parser.add_argument
    add("--only", nargs="+", metavar="STEP", help=f"of {', '.join(STEPS)}")
    add("--root", help="folder of the run folders (runs/demo; runs/demo_quick with --quick)")
    add("--seed", type=int, default=42)
    add("--source", default="mini", help="dialogues: mini, a file, a folder or a hub id")
    add("--quick", action="store_true", help="a few batches of everything")
    add("--feedback", action="store_true", help=f"also {', '.join(FEEDBACK)}")
    add("--overwrite", action="store_true", help="repeat finished steps")
    options = parser.parse_args(arguments)
    if unknown := set(options.only or ()) - set(STEPS):
        parser.error(f"no such step: {', '.join(sorted(unknown))}; choose from {', '.join(STEPS)}")
    default = [name for name in STEPS if options.feedback or name not in FEEDBACK]
    options.steps = [name for name in STEPS if name in (options.only or default)]
    if options.source != "mini" and (refused := [s for s in options.steps if s in FEEDBACK]):
        parser.error(f"{', '.join(refused)}: the simulated annotators know the miniature only")
    options.root = options.root or ("runs/demo_quick" if options.quick else "runs/demo")
    return options


def main(args: Sequence[str]) -> int:
    """Run the steps and the comparison; return the exit code (see common/exits.py)."""
    options = parse(args)
    start_log()

    def work() -> int:
        from rich.console import Console

        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        started, console = time.monotonic(), Console(soft_wrap=True, highlight=False)
        check_root(options)
        run_steps(options, console)
        runs = [f"{options.root}/{name}" for name in TABLE if Path(options.root, name).is_dir()]
        code = run_one([["alignsum.commands.compare", *runs, "--out", f"{options.root}/report"]])
        minutes = (time.monotonic() - started) / 60
        page = f"{options.root}/report/report.html"
        console.print(f"{minutes:.1f} minutes; open {page}", style="bold")
        return code

    return run(work, log, "interrupted; the same command continues")
