"""Compare PPO's estimators, policies and KL weights over seeds: 30 runs on the miniature.

    python -m benchmarks.ppo_study                       # `make bench`
    python -m benchmarks.ppo_study --parts estimators --seeds 1,2

Each part is a sweep file, configs/sweeps/ppo_<part>.yaml. The supervised starts are those of
`make demo` (seed 42), trained here if they are missing, so seeds differ in PPO alone. The same call
continues an interrupted study. After each seed, runs/ppo_study/report has the table and plots of
all runs so far.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from alignsum.commands import demo, frontier, sweep
from common.run_folder import RunFolder

STARTS = ("lora", "full_ft", "soft_prompt")
"""Runs of the demo that the sweep files start from, in runs/demo."""

LORA = ["--model.adapter", "runs/demo/lora/export"]
PARTS = {"estimators": LORA, "policies": [], "betas": LORA}
"""Parts of the study in their order, and further options of their sweeps."""

FEW, FEW_SEEDS = ("betas",), 2
"""Parts that show a trend and make no claim about each point; the number of their seeds."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study; return 0, or the exit code of a start that failed, or 1 if a run failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seeds", type=sweep.read_seeds, default=[1, 2, 3, 4, 5], metavar="N,N")
    parser.add_argument("--root", type=Path, default=Path("runs/ppo_study"))
    options = parser.parse_args(arguments)
    missing = [name for name in STARTS if not RunFolder(f"runs/demo/{name}").export.is_dir()]
    if missing and (code := demo.main(["--only", *missing, "--root", "runs/demo"])):
        return code
    failed, folders = False, []
    for part in options.parts:
        seeds = options.seeds[:FEW_SEEDS] if part in FEW else options.seeds
        folders.append(str(options.root / part))
        for count in range(1, len(seeds) + 1):
            failed |= bool(
                sweep.main([
                    f"configs/sweeps/ppo_{part}.yaml", "--out", folders[-1],
                    "--seeds", ",".join(map(str, seeds[:count])), "--config", "configs/ppo.yaml",
                    "--config", "configs/overlays/mini.yaml", *PARTS[part],
                ])
            )  # fmt: skip
            failed |= bool(frontier.main([*folders, "--out", str(options.root / "report")]))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
