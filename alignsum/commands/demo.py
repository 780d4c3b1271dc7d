"""The `demo` command: every method, trained, tested and compared on the embedded miniature.

    python -m alignsum demo                     # into runs/demo: `make demo`
    python -m alignsum demo --quick             # a few batches of everything: does it run?
    python -m alignsum demo --only lora ppo     # these steps
    python -m alignsum demo --feedback          # also learn from simulated annotators' rankings
    python -m alignsum demo --source data/dialogsum --root runs/real

All steps run in this process, so that the libraries are imported once. Each is one or two commands
that anyone can type; what they print goes to ROOT/<step>.log. Finished steps are skipped, so the
same command continues an interrupted demo. With ``--source`` the miniature's models read other
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
from typing import TYPE_CHECKING, Any

from common.exits import run, start_log

if TYPE_CHECKING:
    from rich.console import Console

log = logging.getLogger("demo")

BASELINES = ("human", "lead_3")
"""Rows without a model: see alignsum/commands/baselines.py."""

FEW_RANKINGS = [
    "--data.batch_size", "4", "--trainer.max_epochs", "4",
    "--model.optimizer.init_args.lr", "3e-4",
]  # fmt: skip
"""Settings of a reward model that learns from some hundreds of rankings instead of 2,000."""

METHODS: dict[str, list[str]] = {
    "zero_shot": ["in_context", "--data.shots", "0"],
    "one_shot": ["in_context", "--data.shots", "1"],
    "few_shot": ["in_context", "--data.shots", "3"],
    "lora": ["lora"],
    "ppo": ["ppo", "--model.adapter", "{root}/lora/export"],
    "full_ft": ["full_ft"],
    "soft_prompt": ["soft_prompt"],
    "reward": ["reward"],
    # Learn from rankings of the LoRA's summaries, with a reward model or without one.
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

FEEDBACK = ("feedback", "reward_feedback", "ppo_feedback", "dpo")
"""Steps that learn from rankings; the first only makes the rankings."""

STEPS = ("zero_shot", *BASELINES, *(name for name in METHODS if name != "zero_shot"))
STEPS = (*(name for name in STEPS if name not in FEEDBACK), *FEEDBACK)
"""All steps in their order."""

TABLE = (
    *BASELINES, "zero_shot", "one_shot", "few_shot", "full_ft", "lora", "soft_prompt", "reward",
    "ppo", "reward_feedback", "ppo_feedback", "dpo",
)  # fmt: skip
"""All runs in the order of the comparison."""

RANKED, QUICKLY_RANKED = 500, 24
"""Number of dialogues that are ranked; the second with ``--quick``."""

COMPLETIONS = 8
"""Completions of each ranked dialogue: 28 pairs a ranking."""

SECONDS = {"zero_shot": 15, "lora": 60, "full_ft": 70, "soft_prompt": 60, "ppo": 90}
"""Typical time of a step, to estimate what remains; 20 for the others."""


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
        limit = ["--max_test_rows", "64"] if quick else []
        options = ["--source", source, "--out", root, "--toxicity", "mini", *limit]
        return [["alignsum.commands.baselines", name, *options, "--overwrite", "true"]]
    if name == "feedback":
        samples, answers = (Path(root, name, f"{part}.jsonl") for part in ("samples", "answers"))
        rows = QUICKLY_RANKED if quick else RANKED
        return sample_and_rank(Path(root, "lora"), samples, answers, rows, seed)
    config, *options = METHODS[name]
    overlays = ["mini", *(["rollouts"] if config == "ppo" else [])]
    if source != "mini" and name != "reward":
        overlays.append("real_text")
        options += ["--data.source", source]
    if quick:
        overlays.append("debug")
        if config != "in_context":  # which has no epoch
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
    sample = [
        "alignsum.commands.rank", "sample", str(run_dir), "--input", "mini", "--split", split,
        "--max_rows", str(rows), "--completions", str(completions), "--output", str(samples),
        "--seed", str(seed), "--overwrite", "true",
    ]  # fmt: skip
    rank = ["collecting.simulated_annotators", str(samples), "--out", str(answers)]
    return [sample, [*rank, "--seed", str(seed), "--overwrite", *annotators]]


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
    known = {"train": ["train.py"]}
    start = known.get(module) or ["-m", *module.replace("alignsum.commands.", "alignsum ").split()]
    return shlex.join(["python", *start, *arguments])


def is_finished(name: str, root: Path) -> bool:
    """Return whether a step has written its last file."""
    last = {"feedback": "answers.jsonl"}.get(name, "predictions.jsonl")
    return (root / name / last).is_file()


def describe_result(name: str, root: Path) -> str:
    """Return a step's main test metrics, times 100."""
    from common.run_folder import RunFolder

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
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        path.open("w", encoding="utf-8") as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
    ):
        yield


def run_steps(options: argparse.Namespace, console: "Console") -> None:
    """Run the steps that are not finished, and report each in two lines.

    Raises:
        ValueError: If a step fails; names its log.
    """
    root = Path(options.root)
    steps = [name for name in options.steps if options.overwrite or not is_finished(name, root)]
    if skipped := [name for name in options.steps if name not in steps]:
        console.print(f"finished earlier (--overwrite repeats them): {', '.join(skipped)}")
    started, worked = time.monotonic(), 0.0
    for number, name in enumerate(steps, start=1):
        estimate = SECONDS.get(name, 20)
        left = sum(SECONDS.get(each, 20) for each in steps[number - 1 :])
        pace = (time.monotonic() - started) / worked if worked else 1.0
        minutes = "" if options.quick else f", about {max(left * pace / 60, 0.5):.1f} min remain"
        console.print(f"{number} of {len(steps)}: {name}{minutes}", style="bold")
        commands = make_commands(name, options.root, options.seed, options.source, options.quick)
        path, began = root / f"{name}.log", time.monotonic()
        with output_to(path):
            for command in commands:
                log.info("$ %s", show(command))
            code = run_one(commands)
        if code:
            tail = "\n".join(path.read_text(encoding="utf-8").splitlines()[-8:])
            raise ValueError(f"{name} failed with exit code {code}; the end of {path}:\n{tail}")
        worked += estimate
        seconds = time.monotonic() - began
        console.print(
            f"   {describe_result(name, root) or 'done'} ({seconds:.0f} s)", style="green"
        )


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
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(settings), encoding="utf-8")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; `steps` are the steps to take."""
    parser = argparse.ArgumentParser(
        prog="alignsum demo", description="Train, test and compare every method on the miniature."
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
    default = STEPS if options.feedback else [name for name in STEPS if name not in FEEDBACK]
    options.steps = [name for name in STEPS if name in (options.only or default)]
    if options.source != "mini" and (alien := [s for s in options.steps if s in FEEDBACK]):
        parser.error(f"{', '.join(alien)}: the simulated annotators know the miniature only")
    options.root = options.root or ("runs/demo_quick" if options.quick else "runs/demo")
    return options


def main(args: Sequence[str]) -> int:
    """Run the steps and the comparison; return the exit code (see common/exits.py)."""
    options = parse(args)
    start_log()

    def work() -> int:
        from rich.console import Console

        os.environ["HF_HUB_OFFLINE"] = os.environ.get("HF_HUB_OFFLINE", "1")
        started = time.monotonic()
        check_root(options)
        console = Console(soft_wrap=True, highlight=False)
        run_steps(options, console)
        return compare(options.root, console, started)

    return run(work, log, "interrupted; the same command continues")


def compare(root: str, console: Any, started: float) -> int:
    """Compare the runs that exist, in the order of the table."""
    runs = [f"{root}/{name}" for name in TABLE if Path(root, name).is_dir()]
    command = ["alignsum.commands.compare", *runs, "--out", f"{root}/report"]
    code = run_one([command])
    minutes = (time.monotonic() - started) / 60
    console.print(f"{minutes:.1f} minutes; open {root}/report/report.html", style="bold")
    return code
