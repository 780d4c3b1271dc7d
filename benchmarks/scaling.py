"""Which strategy for which size of FLAN-T5: the memory plan of every method, as docs/scaling.md.

    python -m benchmarks.scaling --gpu_gib 80

Nothing is loaded: shapes alone are traced (docs/memory.md), a minute or two in all.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import rich

from lightning_modules import LoRA, PPOPolicy, RewardModel, SoftPrompt
from lightning_modules.base import BaseModule
from lightning_modules.full_ft import FullFT
from lightning_modules.ppo.policy_kinds import FullPolicy
from planning.command import plan_run
from planning.memory import Plan, Setting
from planning.parts import Computation, Lengths
from planning.shapes import HATE_CLASSIFIER

SIZES = ("small", "base", "large", "xl", "xxl")
LENGTHS = Lengths(batch_size=8, eval_batch_size=8, source=512, target=128)
COMPUTATION = Computation(bf16=True, gpu=True)
GIB = 2**30
FREE = 0.1
"""Share of a GPU that a plan leaves: its context, and blocks that torch keeps."""


def make_modules(size: str) -> dict[str, BaseModule]:
    """Give every method on a size of FLAN-T5, with its defaults."""
    name = f"google/flan-t5-{size}"
    return {
        "full": FullFT(name),
        "LoRA": LoRA(name),
        "soft prompt": SoftPrompt(name),
        "PPO of a LoRA": PPOPolicy(name, HATE_CLASSIFIER),
        "PPO of all weights": PPOPolicy(name, HATE_CLASSIFIER, policy=FullPolicy()),
    }


def list_settings(devices: int) -> list[Setting]:
    """List the ways that devices share the work: one alone, copies, and parts on two numbers."""
    return [
        Setting(COMPUTATION),
        Setting(COMPUTATION, "ddp", devices),
        Setting(COMPUTATION, "fsdp", devices),
        Setting(COMPUTATION, "fsdp", 4 * devices),
    ]


def choose(totals: Sequence[float], settings: Sequence[Setting], room: float) -> str:
    """Name the first setting that fits the room, in GiB; the simplest comes first."""
    for total, setting in zip(totals, settings, strict=True):
        if total > room:
            continue
        if setting.strategy == "single":
            # A copy of the gradients more: what fits one device alone may not fit it under DDP.
            return "one device, or DDP" if totals[1] <= room else "one device; several by FSDP2"
        return "DDP" if setting.strategy == "ddp" else f"FSDP2 x {setting.devices}"
    return "none of these: a LoRA, or less at a time"


def make_rows(devices: int, room: float) -> Iterator[str]:
    """Give the table's rows as Markdown."""
    settings = list_settings(devices)
    sharded = " | ".join(f"FSDP2 x {count}" for count in (devices, 4 * devices))
    yield f"| FLAN-T5 | method | one device | DDP | {sharded} | take |"
    yield "| --- | --- | ---: | ---: | ---: | ---: | --- |"
    methods = [(size, *each) for size in SIZES for each in make_modules(size).items()]
    rewards = [(f"RoBERTa {size}", "reward", RewardModel(f"FacebookAI/roberta-{size}"))
               for size in ("base", "large")]  # fmt: skip
    for size, method, module in (*methods, *rewards):
        plan: Plan = plan_run(module, settings[0], LENGTHS, HATE_CLASSIFIER)
        totals = [plan.at(setting).total / GIB for setting in settings]
        cells = " | ".join(f"{total:.1f}" for total in totals)
        yield f"| {size} | {method} | {cells} | {choose(totals, settings, room)} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, or write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--gpu_gib", type=float, default=80.0, help="Memory of one GPU, in GiB.")
    parser.add_argument("--devices", type=int, default=8, help="GPUs of one node.")
    parser.add_argument("--out", type=Path, help="File to write instead.")
    asked = parser.parse_args(arguments)
    lines = make_rows(asked.devices, (1 - FREE) * asked.gpu_gib)
    if asked.out:
        asked.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return
    for line in lines:
        rich.print(line)


if __name__ == "__main__":
    main()
