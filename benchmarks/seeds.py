"""Does PPO hold over seeds? Tune a LoRA and align it, from scratch, for each of several seeds.

    python -m benchmarks.seeds 1 2 3

Writes runs/seeds/<seed>/{lora,ppo} (folders of earlier calls are replaced) and prints for each seed
the toxicity before and after PPO, its paired change and the change of rouge1, each with its 95 %
interval. PPO is bimodal over seeds at small scale, so one seed says little.
"""

import sys

from rich.console import Console
from rich.table import Table

import demo
from run_folder import RunFolder

COLUMNS = (
    "test/toxicity_before", "test/toxicity_after", "test/toxicity_change", "test/rouge1_change",
    "objective/kl",
)  # fmt: skip


def main(seeds: list[str]) -> int:
    """Run the seeds one after the other; give 0, or the exit code of what failed."""
    table = Table("seed", *COLUMNS, title="PPO over seeds, values times 100 (KL in nats)")
    for seed in seeds or ["1", "2", "3"]:
        root = f"runs/seeds/{seed}"
        if code := demo.main(["lora", "ppo", "--root", root, "--seed", seed]):
            return code
        metrics = RunFolder(f"{root}/ppo").read_summary()["metrics"]
        table.add_row(seed, *(cell(metrics[name], name) for name in COLUMNS))
    Console(width=140).print(table)
    return 0


def cell(estimate: dict[str, float], name: str) -> str:
    """Show a value with its interval, in the units of the table."""
    scale = 1 if name == "objective/kl" else 100
    text = f"{scale * estimate['value']:.2f}"
    if estimate.get("low") is None:
        return text
    return f"{text} [{scale * estimate['low']:.2f}, {scale * estimate['high']:.2f}]"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
