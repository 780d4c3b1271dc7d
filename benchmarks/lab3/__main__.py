"""Run lab 3 of the course in several ways over five seeds, and compare what comes out.

    python -m benchmarks.lab3                                # `make lab3`: into runs/lab3
    python -m benchmarks.lab3 --arms ours_gae                # one more arm
    python -m benchmarks.lab3 --steps 10 --root runs/short   # a short form

TRL 0.11.4 needs older libraries, so it gets an environment of its own in ROOT/trl. Each run is a
process with one thread and writes ROOT/<run>/result.json; a run that has one is not repeated, so
the same command continues. results.json, tables.md and the pictures follow at the end.
"""

import argparse
import json
import logging
import os
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.lab3 import report
from common.exits import start_log
from common.hub import ASSETS
from common.run_folder import write_text
from reporting.numbers import format_duration

log = logging.getLogger("lab3")

REQUIREMENTS = ("trl==0.11.4", "transformers==4.46.3", "peft==0.13.2", "rich", "torch==2.13.0")

STARTS = {
    "r16_qkvo": {"r": "16", "alpha": "32", "target_modules": "[q,k,v,o]"},
    "r32_qv": {"r": "32", "alpha": "32", "target_modules": "[q,v]"},
}
"""The supervised LoRAs: the miniature's, and one of the lab's shape."""

SETTINGS = {
    "learning_rate": 3e-4, "init_kl_coef": 1.0, "adap_kl_ctrl": False, "ppo_epochs": 2,
    "mini_batch_size": 8, "max_grad_norm": 1.0,
}  # fmt: skip
"""Those of configs/overlays/mini.yaml in TRL's names, for 16 rollouts a step."""

GAE = ["--data.batch_size", "16", "--model.ppo.samples", "1", "--model.advantage", "GAE"]
RLOO = ["--data.batch_size", "4"]
"""Options of train.py; the overlay's RLOO takes four samples of each prompt."""

ARMS: dict[str, tuple[str, Any]] = {
    "lab": ("lab", {}),
    "careful": ("careful", SETTINGS),
    "ours_rloo": ("ours", RLOO),
    "ours_gae": ("ours", GAE),
}
"""What is run over all seeds: the way, and settings of TRL's PPOConfig or options of train.py."""

MAIN = ("lab", "careful", "ours_rloo")
"""Arms that run by default, and whose first steps are checked with a second LoRA."""

SHORT = 10
"""Steps that the lab takes; policies are measured after them as well as at the end."""


class Run(NamedTuple):
    """One run of PPO.

    Attributes:
        arm: Key of ARMS, or "forced".
        way: lab, forced or careful (see trl_ppo.py), or ours.
        start: Key of STARTS.
        seed: Seed of everything random.
        steps: Number of PPO steps.
        settings: As in ARMS.
    """

    arm: str
    way: str
    start: str
    seed: int
    steps: int
    settings: Any

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"{self.arm}-{self.start}-seed{self.seed}"


def plan(seeds: int, steps: int, chosen: Sequence[str] = MAIN) -> list[Run]:
    """List the runs: first those of which only the first steps matter, then the arms."""
    first = [Run("forced", "forced", "r16_qkvo", 1, SHORT, {})]
    for arm, way, settings in [("forced", "forced", {}), *((a, *ARMS[a]) for a in MAIN)]:
        first.append(Run(arm, way, "r32_qv", 1, 1, settings))
    arms = [
        Run(arm, way, "r16_qkvo", seed, steps, settings)
        for arm, (way, settings) in ARMS.items()
        if arm in chosen
        for seed in range(1, seeds + 1)
    ]
    return first + arms


def make_environment(root: Path) -> Path:
    """Install TRL and what it needs into a virtual environment; return its Python."""
    done, python = root / "trl" / "installed.json", root / "trl" / "bin" / "python"
    if not done.exists():
        log.info("Installing %s into %s", ", ".join(REQUIREMENTS), root / "trl")
        venv.create(root / "trl", with_pip=True, clear=True)
        pip = [str(python), "-m", "pip"]
        execute([[*pip, "install", *REQUIREMENTS]], root / "trl" / "log.txt")
        execute([[*pip, "freeze"]], root / "trl" / "freeze.txt")
        write_text(done, json.dumps((root / "trl" / "freeze.txt").read_text("utf-8").split()))
    return python


def make_start(root: Path, name: str) -> None:
    """Fine-tune a LoRA as `make demo` does, and copy it in a form that TRL's PEFT can read."""
    folder, copy = root / "starts" / name, root / "starts" / f"{name}_trl"
    if (copy / "adapter_config.json").exists():
        return
    log.info("Fine-tuning the LoRA %s", name)
    configs = ["--config", "configs/lora.yaml", "--config", "configs/overlays/mini.yaml"]
    more = ["--run_dir", str(folder), "--overwrite", "true", *lora_options("--model", name)]
    execute([[sys.executable, "train.py", "fit", *configs, *more]], root / "starts" / f"{name}.log")
    copy.mkdir(exist_ok=True)
    shutil.copy(folder / "export" / "adapter_model.safetensors", copy)
    config = json.loads((folder / "export" / "adapter_config.json").read_text("utf-8"))
    fields = ("base_model_name_or_path", "peft_type", "task_type", "r", "lora_alpha")
    known = {field: config[field] for field in fields}
    known |= {"target_modules": sorted(config["target_modules"]), "lora_dropout": 0.05}  # the lab's
    write_text(copy / "adapter_config.json", json.dumps(known, indent=1) + "\n")


def lora_options(prefix: str, start: str) -> list[str]:
    """Return options of train.py for the shape of a LoRA."""
    pairs = ((f"{prefix}.{name}", value) for name, value in STARTS[start].items())
    return [word for pair in pairs for word in pair]


def train(run: Run, root: Path, python: Path) -> None:
    """Run PPO, and measure its policies after 10 steps and at the end."""
    folder, start, begun = root / run.name, root / "starts" / run.start / "export", time.time()
    shutil.rmtree(folder, ignore_errors=True)
    steps = sorted({min(SHORT, run.steps), run.steps})
    policies = {0: start} | {step: folder / f"step{step}" for step in steps}
    if run.way == "ours":
        commands = [train_command(run, step, policies[step], start) for step in steps]
        policies |= {step: policies[step] / "export" for step in steps}
    else:
        job = {
            "way": run.way, "seed": run.seed, "steps": run.steps, "config": run.settings,
            "backbone": str(ASSETS / "mini" / "t5"), "judge": str(ASSETS / "mini" / "roberta"),
            "rows": str(ASSETS / "mini" / "train.jsonl"), "out": str(folder), "export_at": steps,
            "adapter": str(root / "starts" / f"{run.start}_trl"),
        }  # fmt: skip
        write_text(folder / "job.json", json.dumps(job, indent=1) + "\n")
        script = Path(__file__).with_name("trl_ppo.py")
        commands = [[str(python), str(script), str(folder / "job.json")]]
    named = [f"{step}={policy}" for step, policy in policies.items()]
    out = ["--seed", str(run.seed), "--out", str(folder / "measured.json")]
    measure = [sys.executable, "-m", "benchmarks.lab3.measure", *named, *out]
    execute([*commands, measure], folder / "log.txt")
    logged, gates = report.read_steps(folder, run.way)
    measured = json.loads((folder / "measured.json").read_text("utf-8"))
    result = {"run": run._asdict(), "steps": logged, "gates": gates, "measured": measured}
    write_text(folder / "result.json", json.dumps(result) + "\n")
    log.info("%s took %s", run.name, format_duration(time.time() - begun))


def train_command(run: Run, steps: int, folder: Path, start: Path) -> list[str]:
    """Return the command that trains with this package, at a constant rate as in TRL."""
    epochs = 1 if steps <= SHORT else 2  # GAE takes 16 dialogues a step and would run out of them
    return [
        sys.executable, "train.py", "fit", "--config", "configs/ppo.yaml",
        "--config", "configs/overlays/mini.yaml", "--run_dir", str(folder),
        "--model.adapter", str(start), *lora_options("--model.policy.init_args", run.start),
        "--seed", str(run.seed),
        # The classifier alone, as in TRL's runs, without the overlay's ROUGE.
        "--model.extra_rewards", "null", "--model.schedule", "constant",
        "--model.ppo.minibatch_size", str(SETTINGS["mini_batch_size"]), *run.settings,
        "--trainer.max_epochs", str(epochs),
        "--trainer.limit_train_batches", str(steps // epochs),
        "--trainer.limit_val_batches", "0", "--validate_first", "false",
    ]  # fmt: skip


def execute(commands: Sequence[Sequence[str]], path: Path) -> None:
    """Run commands one after the other, with one thread each and their output in a file.

    Raises:
        SystemExit: If one fails; names the file.
    """
    fixed = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONHASHSEED": "0"}
    fixed |= {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}
    fixed |= {"TOKENIZERS_PARALLELISM": "false", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for command in commands:
            done = subprocess.run(  # noqa: S603 - our own commands
                command, stdout=file, stderr=subprocess.STDOUT, env=os.environ | fixed, check=False
            )
            if done.returncode:
                raise SystemExit(f"lab3: a command failed with {done.returncode}; see {path}")


def is_finished(run: Run, root: Path) -> bool:
    """Return whether a run has a result, with the same number of steps and settings."""
    path = root / run.name / "result.json"
    return path.exists() and Run(**json.loads(path.read_text("utf-8"))["run"]) == run


def train_all(runs: Sequence[Run], root: Path, python: Path, workers: int) -> None:
    """Train what has no result yet, and log progress and the time left."""
    todo = [run for run in runs if not is_finished(run, root)]
    log.info("%d of %d runs are finished", len(runs) - len(todo), len(runs))
    # A run costs about as much as 20 steps even if it takes none; one prompt at a time doubles it.
    work = {run.name: (run.steps + 20) * (2 if run.way == "lab" else 1) for run in todo}
    begun, done = time.time(), 0
    with ThreadPoolExecutor(workers) as pool:
        futures = {pool.submit(train, run, root, python): run for run in todo}
        try:
            for count, future in enumerate(as_completed(futures), 1):
                future.result()
                done += work[futures[future].name]
                left = (sum(work.values()) / done - 1) * (time.time() - begun)
                log.info("%d/%d runs, about %s left", count, len(todo), format_duration(left))
        finally:
            pool.shutdown(cancel_futures=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Install TRL, train all runs, and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--root", type=Path, default=Path("runs/lab3"))
    parser.add_argument("--steps", type=int, default=200, help="of PPO, an even number from 10")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=MAIN)
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, one thread each")
    options = parser.parse_args(arguments)
    if options.steps < SHORT or options.steps % 2 or options.seeds < 1:
        parser.error("--steps must be even and 10 or more, --seeds 1 or more")
    start_log()
    root = options.root.resolve()
    python = make_environment(root)
    for name in STARTS:
        make_start(root, name)
    train_all(plan(options.seeds, options.steps, options.arms), root, python, options.workers)
    every = plan(options.seeds, options.steps, list(ARMS))
    report.write_report(root, [root / run.name for run in every if is_finished(run, root)])
    log.info("Results are in %s", root / "tables.md")


if __name__ == "__main__":
    main()
