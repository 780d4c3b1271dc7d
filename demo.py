"""The whole story on the embedded miniature: every method trained, tested and compared.

    python -m demo                            # all of it, into runs/demo: what `make demo` runs
    python -m demo lora ppo                   # these only, in this order
    python -m demo lora ppo --root runs/b --seed 2

Every run is two commands that anyone can type; they are printed before they run. Fit and test of a
run share one process, and every run has its own, so that its peak memory is its own.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console

MINI = ["--config", "configs/overlays/mini.yaml"]

RUNS: dict[str, list[str]] = {
    "zero_shot": ["--config", "configs/in_context.yaml", *MINI, "--data.shots", "0"],
    "one_shot": ["--config", "configs/in_context.yaml", *MINI, "--data.shots", "1"],
    "few_shot": ["--config", "configs/in_context.yaml", *MINI, "--data.shots", "3"],
    "full_ft": ["--config", "configs/full_ft.yaml", *MINI],
    "lora": ["--config", "configs/lora.yaml", *MINI],
    "soft_prompt": ["--config", "configs/soft_prompt.yaml", *MINI],
    "reward": ["--config", "configs/reward.yaml", *MINI],
    # PPO goes on from the LoRA that was just tuned.
    "ppo": ["--config", "configs/ppo.yaml", *MINI, "--model.adapter", "{root}/lora/export"],
}
"""Name of each run and its settings."""

console = Console(soft_wrap=True)


def run_one(name: str, root: str, seed: int) -> None:
    """Fit and test one method in this process.

    Args:
        name: A key of RUNS.
        root: Folder of the run folders.
        seed: Seed of everything random in the run.
    """
    import train  # takes seconds to import, and the parent process has no use for it

    settings = [part.format(root=root) for part in RUNS[name]]
    settings += ["--run_dir", str(Path(root) / name), "--seed_everything", str(seed)]
    for command in ("fit", "test"):
        # The demo's folder is the demo's: a second demo replaces the first.
        arguments = [command, *settings, "--overwrite", "true"]
        console.print(f"$ python train.py {' '.join(arguments)}", style="cyan", markup=False)
        train.main(arguments)


def main(arguments: list[str]) -> int:
    """Run the named methods, or all, each in a process of its own, then compare them.

    Returns:
        0, or the exit code of the first command that failed.
    """
    parser = argparse.ArgumentParser(description="Every method on the embedded miniature.")
    parser.add_argument("runs", nargs="*", metavar="RUN", help=f"of {', '.join(RUNS)}; all if none")
    parser.add_argument("--root", default="runs/demo", help="folder of the run folders")
    parser.add_argument("--seed", type=int, default=42)
    options = parser.parse_args(arguments)
    if unknown := set(options.runs) - set(RUNS):
        parser.error(f"no such run: {', '.join(sorted(unknown))}; there are {', '.join(RUNS)}")
    started = time.monotonic()
    chosen = options.runs or list(RUNS)
    for place, name in enumerate(chosen, start=1):
        console.rule(f"[bold]{place} of {len(chosen)}: {name}")
        program = f"import demo; demo.run_one({name!r}, {options.root!r}, {options.seed})"
        if code := subprocess.call([sys.executable, "-c", program]):  # noqa: S603
            console.print(f"{name} failed with exit code {code}", style="red")
            return code
    console.rule("[bold]comparison")
    runs = [f"{options.root}/{name}" for name in RUNS if Path(options.root, name).is_dir()]
    report = ["report.py", "compare", *runs, "--out", f"{options.root}/report"]
    code = subprocess.call([sys.executable, *report])  # noqa: S603
    minutes = (time.monotonic() - started) / 60
    console.print(f"{minutes:.1f} minutes in all; everything is in {options.root}")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
