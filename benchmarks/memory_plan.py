"""Is the memory plan right? Train models of FLAN-T5-base's size on the CPU, and compare.

    python -m benchmarks.memory_plan
    python -m benchmarks.memory_plan --methods lora ppo --precisions 32-true --shapes 4x256x64

A T5 and a RoBERTa of the base size with random weights, and rows of just the lengths asked for.
Each run is a process of its own through ``train.py``: two steps and a validation. Prints what was
planned and measured: for the process as a whole, and for what it took beyond its baseline (Python
and libraries), which is the harder test. And how the peaks of PPO with a LoRA and of fine-tuning
one compare, on the same rows. A run takes up to 9 GiB. Everything is in ``runs/memory_plan``; a run
that is there is not done again, so an interrupted benchmark goes on.
"""

import argparse
import json
import random
import subprocess
import sys
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from benchmarks.models import save_roberta_base, save_t5_base
from hub import load_tokenizer
from planning.parts import PROCESS
from run_folder import RunFolder

ROOT = Path("runs/memory_plan")
METHODS = ("full_ft", "lora", "soft_prompt", "ppo")
PRECISIONS = ("32-true", "bf16-mixed")
SHAPES = ("4x256x64", "2x512x64")
STEPS = 2
TOLERANCE = 0.15
PPO_TO_LORA = 1.25


class Case(NamedTuple):
    """One run: a config's name, a precision, and rows x source x target tokens of a batch."""

    method: str
    precision: str
    shape: str

    @property
    def folder(self) -> RunFolder:
        """Where the run is."""
        return RunFolder(ROOT / "-".join(self))


class Result(NamedTuple):
    """Bytes: planned and measured at the peak, and of the process before anything was loaded."""

    planned: int
    measured: int
    planned_process: int
    baseline: int

    @property
    def pairs(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """What was planned and measured, as a whole and beyond the process."""
        beyond = self.planned - self.planned_process, self.measured - self.baseline
        return (self.planned, self.measured), beyond


def main(arguments: list[str] | None = None) -> int:
    """Run the cases one after the other; give 0 where all is near enough, else 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS)
    parser.add_argument("--shapes", nargs="+", default=SHAPES)
    chosen = parser.parse_args(arguments)
    console = Console(width=100)
    cases = [Case(*each) for each in product(chosen.methods, chosen.precisions, chosen.shapes)]
    results: dict[Case, Result] = {}
    for number, case in enumerate(cases, start=1):
        console.print(f"{number} of {len(cases)}: {' '.join(case)}", style="dim")
        results[case] = read(case) or run(case)
    console.print(make_table(results))
    differences = [
        abs(planned / measured - 1)
        for result in results.values()
        for planned, measured in result.pairs
    ]
    worst = max(differences)
    console.print(f"largest difference {worst:.1%}, allowed {TOLERANCE:.0%}")
    ratios = compare_ppo(results)
    for case, ratio in ratios.items():
        console.print(
            f"peak of PPO with a LoRA to fine-tuning one, {case.precision} {case.shape}: "
            f"{ratio:.2f}, allowed {PPO_TO_LORA}"
        )
    return int(worst > TOLERANCE or any(ratio > PPO_TO_LORA for ratio in ratios.values()))


def compare_ppo(results: Mapping[Case, Result]) -> dict[Case, float]:
    """Give the ratio of PPO's measured peak to LoRA fine-tuning's, where both were run."""
    pairs = {case: case._replace(method="lora") for case in results if case.method == "ppo"}
    return {
        ppo: results[ppo].measured / results[lora].measured
        for ppo, lora in pairs.items()
        if lora in results
    }


def make_table(results: Mapping[Case, Result]) -> Table:
    """Lay out planned and measured peaks, in GiB."""
    table = Table(
        "method", "precision", "batch", "planned", "measured", "ratio", "beyond process: planned",
        "measured", "ratio", title="Peak memory in GiB (ratio: planned / measured)",
    )  # fmt: skip
    for case, result in results.items():
        cells = [
            text
            for planned, measured in result.pairs
            for text in (
                f"{planned / 2**30:.2f}", f"{measured / 2**30:.2f}", f"{planned / measured:.2f}"
            )
        ]  # fmt: skip
        table.add_row(*case, *cells)
    return table


def read(case: Case) -> Result | None:
    """Give the result of a run that was done before, or None."""
    memory = case.folder.read_summary().get("memory")
    if memory is None:
        return None
    return Result(
        memory["plan_bytes"], memory["measured_peak_bytes"], memory["plan"][PROCESS],
        memory["baseline_bytes"],
    )  # fmt: skip


def run(case: Case) -> Result:
    """Train in a process of its own: the second step meets what the first one has left."""
    rows, source, target = case.shape.split("x")
    t5, roberta = make_models(ROOT / "models")
    data = make_rows(ROOT / f"rows-{case.shape}", t5, int(rows), int(source), int(target))
    command = [
        sys.executable, "train.py", "fit", "--config", f"configs/{case.method}.yaml",
        "--run_dir", str(case.folder.path), "--overwrite", "true",
        "--model.backbone", t5, "--toxicity.model", "null",
        "--model.decoding.max_new_tokens", "16",
        "--data.source", str(data), "--data.prompt", "Plain", "--data.batch_size", rows,
        "--data.max_source_length", source, "--data.max_target_length", target,
        "--trainer.accelerator", "cpu", "--trainer.precision", case.precision,
        "--trainer.max_epochs", "1", "--trainer.num_sanity_val_steps", "0",
        "--trainer.logger", "false",
        # Gigabytes on the disk, which are not what is measured.
        "--checkpoint.monitor", "null", "--checkpoint.save_last", "false",
        "--checkpoint.every_n_epochs", "1000",
    ]  # fmt: skip
    if case.method == "ppo":
        command += [
            "--model.reward_model", roberta, "--model.ppo.epochs", "1",
            "--model.ppo.max_new_tokens", target, "--data.min_dialogue_chars", "0",
            "--data.max_dialogue_chars", "null", "--trainer.val_check_interval", "1.0",
        ]  # fmt: skip
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603
    result = read(case)
    if result is None:
        raise RuntimeError(f"{case.folder.path} has no memory in its summary.json")
    return result


def make_models(folder: Path) -> tuple[str, str]:
    """Save a T5 and a classifier of the base size with random weights, once."""
    t5, roberta = folder / "t5", folder / "roberta"
    for model, save in ((t5, save_t5_base), (roberta, save_roberta_base)):
        if not (model / "model.safetensors").is_file():
            save(model)
    return str(t5), str(roberta)


def make_rows(folder: Path, tokenizer: str, rows: int, source: int, target: int) -> Path:
    """Write rows that batches of are padded to just these lengths, and that leave some padding."""
    rng = random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    words = load_tokenizer(tokenizer)(" there" * 100)["input_ids"]
    if len(words) != 101:
        raise RuntimeError("this tokenizer has more than one token for a word, or no EOS")
    for split, count in (("train", rows * STEPS), ("validation", 1)):
        with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as file:
            for number in range(count):
                # Lengths are padded to eights; EOS is one of the tokens.
                said, summary = (n - 1 - rng.randrange(8) for n in (source, target))
                row = {"id": f"{split}_{number}", "dialogue": " there" * said}
                file.write(json.dumps(row | {"summary": " there" * summary}) + "\n")
    return folder


if __name__ == "__main__":
    sys.exit(main())
