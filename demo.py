"""The whole story on the embedded miniature: every method trained, tested and compared.

    python -m demo               # all of it, into runs/demo: what `make demo` runs
    python -m demo lora ppo      # these only, in this order

Every run is two commands that anyone can type; they are printed before they run. Fit and test of a
run share one process, and every run has its own, so that its peak memory is its own.
"""

import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console

ROOT = Path("runs/demo")
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
    "ppo": [
        "--config", "configs/ppo.yaml", *MINI,
        "--model.adapter", str(ROOT / "lora" / "export"),
    ],
}  # fmt: skip
"""Name of each run and its settings."""

console = Console()


def run_one(name: str) -> None:
    """Fit and test one method in this process."""
    import train  # takes seconds to import, and the parent process has no use for it

    settings = [*RUNS[name], "--run_dir", str(ROOT / name)]
    for command in ("fit", "test"):
        # The demo's folder is the demo's: a second demo replaces the first.
        arguments = [command, *settings, "--overwrite", "true"]
        console.print(f"$ python train.py {' '.join(arguments)}", style="cyan", markup=False)
        train.main(arguments)


def main(names: list[str]) -> int:
    """Run the named methods, or all, each in a process of its own, then compare them.

    Returns:
        0, or the exit code of the first command that failed.
    """
    chosen = names or list(RUNS)
    if unknown := [name for name in chosen if name not in RUNS]:
        console.print(f"no such run: {', '.join(unknown)}; there are {', '.join(RUNS)}")
        return 2
    started = time.monotonic()
    for place, name in enumerate(chosen, start=1):
        console.rule(f"[bold]{place} of {len(chosen)}: {name}")
        code = subprocess.call([sys.executable, "-c", f"import demo; demo.run_one({name!r})"])  # noqa: S603
        if code:
            console.print(f"{name} failed with exit code {code}", style="red")
            return code
    console.rule("[bold]comparison")
    runs = [str(ROOT / name) for name in RUNS if (ROOT / name).is_dir()]
    compare = [sys.executable, "report.py", "compare", *runs, "--out", str(ROOT / "report")]
    code = subprocess.call(compare)  # noqa: S603
    console.print(
        f"{(time.monotonic() - started) / 60:.1f} minutes in all; everything is in {ROOT}"
    )
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
