"""Is the memory plan right? Train models of FLAN-T5-base's size on the CPU, and compare.

    python -m benchmarks.memory_plan
    python -m benchmarks.memory_plan --methods lora ppo --precisions 32-true --shapes 4x512x64

Makes a T5 and a RoBERTa of the base size with random weights in ``runs/memory_plan`` (1.5 GB) and
rows as long as asked for. Each run is a process of its own through ``train.py``: a few steps and a
validation. Prints what was planned and measured: for the process as a whole, and for what it took
beyond its baseline (Python and libraries), which is the harder test. A run takes up to 9 GiB.
"""

import argparse
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    T5ForConditionalGeneration,
)

import hub
from planning.shapes import HATE_CLASSIFIER, find_blueprint
from run_folder import RunFolder

ROOT = Path("runs/memory_plan")
METHODS = ("full_ft", "lora", "soft_prompt", "ppo")
PRECISIONS = ("32-true", "bf16-mixed")
SHAPES = ("6x256x64", "4x512x64")
STEPS = 4
TOLERANCE = 0.15


class Case(NamedTuple):
    """One run: a config's name, a precision, and rows x source x target tokens of a batch."""

    method: str
    precision: str
    shape: str

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Rows, source and target tokens of a batch."""
        rows, source, target = map(int, self.shape.split("x"))
        return rows, source, target


def main(arguments: list[str] | None = None) -> int:
    """Run the cases one after the other; give 0 where every plan is near enough, else 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS)
    parser.add_argument("--shapes", nargs="+", default=SHAPES)
    chosen = parser.parse_args(arguments)
    models = make_models(ROOT / "models")
    table = Table(
        "method", "precision", "batch", "planned", "measured", "ratio", "beyond baseline: planned",
        "measured", "ratio", title="Peak memory in GiB (measured / planned)",
    )  # fmt: skip
    worst = 0.0
    for case in (
        Case(method, precision, shape)
        for method in chosen.methods
        for precision in chosen.precisions
        for shape in chosen.shapes
    ):
        memory = run(case, models)
        beyond = memory["plan_bytes"] - memory["plan"]["Python and libraries"]
        pairs = [
            (memory["plan_bytes"], memory["measured_peak_bytes"]),
            (beyond, memory["measured_peak_bytes"] - memory["baseline_bytes"]),
        ]
        cells = [text for planned, measured in pairs for text in show(planned, measured)]
        table.add_row(*case, *cells)
        worst = max(worst, *(abs(measured / planned - 1) for planned, measured in pairs))
        Console(width=140).print(" ".join([*case, *cells]))
    Console(width=140).print(table)
    Console().print(f"largest difference {worst:.1%}, allowed {TOLERANCE:.0%}")
    return int(worst > TOLERANCE)


def show(planned: int, measured: int) -> Iterator[str]:
    """Give both in GiB, and their ratio."""
    yield f"{planned / 2**30:.2f}"
    yield f"{measured / 2**30:.2f}"
    yield f"{measured / planned:.2f}"


def run(case: Case, models: dict[str, str]) -> dict[str, Any]:
    """Train for a few steps in a process of its own; give summary.json's ``memory``."""
    rows, source, target = case.sizes
    folder = ROOT / "-".join(case)
    data = make_rows(ROOT / f"rows-{case.shape}", rows * STEPS, rows)
    command = [
        sys.executable, "train.py", "fit", "--config", f"configs/{case.method}.yaml",
        "--run_dir", str(folder), "--overwrite", "true",
        "--model.backbone", models["t5"], "--toxicity.model", "null",
        "--model.decoding.max_new_tokens", "16",
        "--data.source", str(data), "--data.batch_size", str(rows),
        "--data.max_source_length", str(source), "--data.max_target_length", str(target),
        "--trainer.accelerator", "cpu", "--trainer.precision", case.precision,
        "--trainer.max_epochs", "1", "--trainer.num_sanity_val_steps", "0",
        "--trainer.logger", "false",
        # Gigabytes on the disk, which are not what is measured.
        "--checkpoint.monitor", "null", "--checkpoint.save_last", "false",
        "--checkpoint.every_n_epochs", "1000",
    ]  # fmt: skip
    if case.method == "ppo":
        command += [
            "--model.reward_model", models["roberta"], "--model.ppo.epochs", "2",
            "--model.ppo.max_new_tokens", str(target), "--data.min_dialogue_chars", "0",
            "--data.max_dialogue_chars", "null", "--trainer.val_check_interval", "1.0",
        ]  # fmt: skip
    else:
        command += ["--trainer.gradient_clip_val", "1.0"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603
    memory: dict[str, Any] = RunFolder(folder).read_summary()["memory"]
    return memory


def make_models(folder: Path) -> dict[str, str]:
    """Write a T5 and a classifier of the base size with random weights, once."""
    t5, roberta = folder / "t5", folder / "roberta"
    torch.manual_seed(0)
    if not (t5 / "tokenizer_config.json").is_file():
        blueprint = find_blueprint("google/flan-t5-base")
        model = T5ForConditionalGeneration(blueprint.config)
        model.lm_head.weight = nn.Parameter(torch.randn_like(model.lm_head.weight) * 0.02)
        model.config.tie_word_embeddings = False
        model.save_pretrained(t5)
        hub.load_tokenizer("mini").save_pretrained(t5)
    if not (roberta / "tokenizer_config.json").is_file():
        config = find_blueprint(HATE_CLASSIFIER, "classifier").config
        config.id2label, config.label2id = {0: "nothate", 1: "hate"}, {"nothate": 0, "hate": 1}
        AutoModelForSequenceClassification.from_config(config).save_pretrained(roberta)
        tokenizer = AutoTokenizer.from_pretrained(hub.resolve_model("mini", "classifier"))
        tokenizer.save_pretrained(roberta)
    return {"t5": str(t5), "roberta": str(roberta)}


def make_rows(folder: Path, train: int, validation: int) -> Path:
    """Write rows too long for any limit, and among them shorter ones, which leave padding."""
    rng = random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", train), ("validation", validation)):
        lines = []
        for number in range(count):
            turns = 400 if number % 2 == 0 else rng.randrange(12, 20)
            said = [f"#Person{1 + turn % 2}#: I will meet you there." for turn in range(turns)]
            text = "\n".join(said)
            row = {"id": f"{split}_{number}", "dialogue": text, "summary": text[: turns * 25]}
            lines.append(json.dumps(row) + "\n")
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


if __name__ == "__main__":
    sys.exit(main())
