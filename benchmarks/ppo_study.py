"""Does PPO hold over seeds, over estimators, over policies, and what does the KL do?

    python -m benchmarks.ppo_study                       # everything: 30 runs, `make bench`
    python -m benchmarks.ppo_study --parts estimators --seeds 1,2

On the miniature, in parts that are sweep files of configs/sweeps: GAE, RLOO and GRPO from one LoRA;
all weights and a soft prompt, each from its own start; the weight of the KL, and none. The
supervised starts are those of `make demo` (seed 42), made here where they are missing: what the
seeds differ in is PPO alone. Runs lie in runs/ppo_study/<part>/<arm>-seed<N>, one is made after the
other, and the same call goes on where an earlier one stopped. After each seed of a part the table
and the plots of all runs until then are written to runs/ppo_study/report (`report.py frontier`).
What it gave: docs/ppo_study.md.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from alignsum import __main__ as report
from alignsum.commands import demo, sweep
from common.run_folder import RunFolder

STARTS = ("lora", "full_ft", "soft_prompt")
START_ROOT = "runs/demo"
"""Where the sweep files look for them too."""

PARTS: dict[str, list[str]] = {
    "estimators": ["--model.adapter", f"{START_ROOT}/lora/export"],
    "policies": [],
    "betas": ["--model.adapter", f"{START_ROOT}/lora/export"],
}
"""Parts of the study in their order: configs/sweeps/ppo_<part>.yaml, and further options."""

FEW = ("betas",)
"""Parts for which two seeds are enough: they show a course, and no claim is made for each point."""

CONFIGS = ["--config", "configs/ppo.yaml", "--config", "configs/overlays/mini.yaml"]

console = Console(soft_wrap=True)


def make_starts() -> int:
    """Tune the starts that are missing; give 0, or the exit code of what failed."""
    missing = [name for name in STARTS if not RunFolder(f"{START_ROOT}/{name}").export.is_dir()]
    return demo.main(["--only", *missing, "--root", START_ROOT]) if missing else 0


def run_part(part: str, seeds: Sequence[int], root: Path) -> int:
    """Run a part's sweep for some seeds; complete runs are skipped."""
    numbers = ",".join(map(str, seeds))
    arguments = [f"configs/sweeps/ppo_{part}.yaml", "--out", str(root / part), "--seeds", numbers]
    return sweep.main([*arguments, *CONFIGS, *PARTS[part]])


def write_report(root: Path) -> int:
    """Write the table and the plots of all parts that have runs."""
    parts = [str(root / part) for part in PARTS if (root / part).is_dir()]
    return report.main(["frontier", *parts, "--out", str(root / "report")])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study, or parts of it.

    Returns:
        0; the exit code of a start that failed; 1 where a run of a sweep failed.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--parts", default=",".join(PARTS), help="with commas between")
    parser.add_argument("--seeds", type=sweep.read_seeds, default=[1, 2, 3, 4, 5], metavar="N,N")
    parser.add_argument(
        "--few", type=int, default=2, help=f"seeds, the first ones, for {', '.join(FEW)}"
    )
    parser.add_argument("--root", type=Path, default=Path("runs/ppo_study"))
    options = parser.parse_args(arguments)
    parts = options.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    if code := make_starts():
        return code
    failed = False
    for part in parts:
        seeds = options.seeds[: options.few] if part in FEW else options.seeds
        for count in range(1, len(seeds) + 1):
            console.rule(f"[bold]{part}, seed {count} of {len(seeds)}")
            failed |= bool(run_part(part, seeds[:count], options.root))
            failed |= bool(write_report(options.root))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
