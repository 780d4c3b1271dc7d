"""Test the path from rankings to policies: SFT, sample, rank, then reward model and PPO, or DPO.

    python -m benchmarks.feedback_loop                            # seeds 1, 2 and 3
    python -m benchmarks.feedback_loop 1 --rankings 100 --root /tmp/loop

On the miniature, for each seed from scratch: a LoRA is tuned; completions are drawn from it, of as
many train dialogues as rankings are wanted, and of validation and test dialogues; simulated
annotators rank them, and are wrong about one fault in ten (collecting.simulated_annotators);
a reward model learns from the rankings; PPO by RLOO from the LoRA goes by that reward model, and
beside it by the classifier that is given; and DPO learns from the same pairs. Every step is a
command that
anyone can type, printed before it runs. A step that is done is not done again: the same call goes
on where an earlier one stopped.

Prints, and writes to <root>/results.json: the reward model's accuracy on unseen dialogues beside
what the annotators' mistakes allow, which is the accuracy of one who knows every fault; toxicity
before and after; and the change of ROUGE. Exits with 1 where a claim does not hold over the seeds.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from alignsum.commands import demo
from common.run_folder import RunFolder, write_text
from metrics.intervals import Estimate, bootstrap_crossed
from metrics.mini import rate_pairs
from reporting.numbers import format_interval, format_value

POLICIES = ("ppo_given", "ppo", "dpo")
SHARE = 0.9
"""Of the accuracy that the annotators allow, what a reward model has to reach."""
ROWS = {"validation": 100, "test": 300}
"""Dialogues that are ranked beside those of the train split."""
COMPLETIONS = 16
"""Of each dialogue."""

console = Console(soft_wrap=True)


class Step(NamedTuple):
    """Something that is to be there, and the commands that make it, arguments of ``python``."""

    result: Path
    commands: list[list[str]]


def make_steps(root: Path, seed: int, options: argparse.Namespace) -> list[Step]:
    """Give the steps of a seed in their order, by the options of :func:`parse`."""
    steps = [make_run(root, "lora", "lora", seed)]
    who = ["--annotators", str(options.annotators), "--noise", str(options.noise)]
    for split, rows in {"train": -(-options.rankings // options.annotators), **ROWS}.items():
        samples, answers = root / f"samples/{split}.jsonl", root / f"answers/{split}.jsonl"
        commands = demo.sample_and_rank(
            root / "lora", samples, answers, rows, seed, split, options.completions, who
        )
        steps.append(Step(answers, commands))
    start = ["--model.adapter", str(root / "lora/export")]
    source = ["--data.source", str(root / "answers")]
    reward = ["--model.reward_model", str(root / "reward/export")]
    return [
        *steps,
        make_run(root, "reward", "reward", seed, [*source, *demo.FEW_RANKINGS]),
        make_run(root, "ppo_given", "ppo", seed, start),
        make_run(root, "ppo", "ppo", seed, [*start, *reward]),
        make_run(root, "dpo", "dpo", seed, [*start, *source]),
    ]


def make_run(root: Path, name: str, config: str, seed: int, settings: Sequence[str] = ()) -> Step:
    """Give the step that fits and tests a config on the miniature."""
    commands = demo.fit_and_test(config, root / name, seed, settings)
    return Step(RunFolder(root / name).predictions, commands)


def run_steps(steps: Sequence[Step]) -> int:
    """Take the steps that are not done; give 0, or the exit code of a command that failed."""
    for step in steps:
        if step.result.exists():
            continue
        for command in step.commands:
            console.print(f"$ {demo.show(command)}", style="cyan", markup=False)
            if code := demo.run_one([command]):
                return code
    return 0


# What it gave -------------------------------------------------------------------------------------


def read_accuracies(root: Path) -> dict[str, tuple[float, float]]:
    """Give for each test dialogue the reward model's accuracy, and what the annotators allow."""
    found = {}
    for row in RunFolder(root / "reward").read_predictions():
        allowed = rate_pairs(row)
        found[row["id"]] = (row["accuracy"], sum(allowed) / len(allowed))
    return found


def measure_rewards(roots: Sequence[Path]) -> dict[str, Estimate]:
    """Estimate accuracies over seeds, on the test dialogues that have a pair in all of them."""
    seeds = [read_accuracies(root) for root in roots]
    shared = [name for name in seeds[0] if all(name in found for found in seeds)]
    own, allowed = (
        [[found[name][which] for name in shared] for found in seeds] for which in (0, 1)
    )
    spare = [
        [a - SHARE * b for a, b in zip(one, two, strict=True)]
        for one, two in zip(own, allowed, strict=True)
    ]
    return {
        "accuracy": bootstrap_crossed(own),
        "allowed": bootstrap_crossed(allowed),
        f"accuracy - {SHARE} allowed": bootstrap_crossed(spare),
    }


def measure_policy(roots: Sequence[Path], name: str) -> dict[str, Estimate]:
    """Estimate over seeds what a policy changed, on the same test dialogues."""
    runs = [RunFolder(root / name).read_predictions() for root in roots]

    def estimate(column: str, share: float = 1.0, before: str | None = None) -> Estimate:
        old = before or f"{column}_before"
        return bootstrap_crossed([[row[column] - share * row[old] for row in run] for run in runs])

    return {
        "toxicity before": bootstrap_crossed([[row["toxicity_before"] for row in r] for r in runs]),
        "toxicity after": bootstrap_crossed([[row["toxicity"] for row in r] for r in runs]),
        "after - half of before": estimate("toxicity", 0.5),
        "rouge1 change": estimate("rouge1"),
    }


def show(results: dict[str, dict[str, Estimate]], title: str) -> None:
    """Print results as a table."""
    table = Table("", *next(iter(results.values())), title=title, title_justify="left")
    for name, found in results.items():
        cells = (f"{format_value(each)} ({format_interval(each)})" for each in found.values())
        table.add_row(name, *cells)
    console.print(table)


def report(root: Path, seeds: Sequence[int]) -> bool:
    """Print and write what came out; say whether every claim holds over all seeds."""
    roots = [root / str(seed) for seed in seeds]
    rewards = {
        **{f"seed {seed}": measure_rewards([one]) for seed, one in zip(seeds, roots, strict=True)},
        "all": measure_rewards(roots),
    }
    policies = {
        f"{name}, {who}": measure_policy(some, name)
        for name in POLICIES
        for who, some in [
            *((f"seed {seed}", [one]) for seed, one in zip(seeds, roots, strict=True)),
            ("all", roots),
        ]
    }
    show(rewards, "Reward model: share of pairs of unseen dialogues in order, x 100")
    show(policies, "Policies: toxicity and ROUGE-1 of 300 test dialogues, x 100")
    results = {"rewards": to_json(rewards), "policies": to_json(policies)}
    write_text(root / "results.json", json.dumps(results, indent=2) + "\n")
    spare = rewards["all"][f"accuracy - {SHARE} allowed"].low or 0.0
    halves = [policies[f"{name}, all"]["after - half of before"].high or 0.0 for name in POLICIES]
    return spare > 0 and max(halves) < 0


def to_json(results: dict[str, dict[str, Estimate]]) -> dict[str, Any]:
    """Give results in JSON's types."""
    return {
        name: {key: each._asdict() for key, each in found.items()}
        for name, found in results.items()
    }


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("seeds", nargs="*", type=int, default=[1, 2, 3])
    parser.add_argument("--root", type=Path, default=Path("runs/feedback_loop"))
    parser.add_argument("--rankings", type=int, default=500, help="answers to learn from")
    parser.add_argument("--annotators", type=int, default=1, help="who rank each dialogue")
    parser.add_argument("--completions", type=int, default=COMPLETIONS, help="in each ranking")
    parser.add_argument("--noise", type=float, default=0.1, help="share of faults misread")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the seeds one after the other.

    Returns:
        0, 1 where a claim does not hold, or the exit code of a command that failed.
    """
    options = parse(arguments)
    for seed in options.seeds:
        console.rule(f"[bold]seed {seed}")
        if code := run_steps(make_steps(options.root / str(seed), seed, options)):
            return code
    return int(not report(options.root, options.seeds))


if __name__ == "__main__":
    sys.exit(main())
