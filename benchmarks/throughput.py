"""Measure the speed of training: full fine-tuning, a LoRA, and PPO phase by phase.

    python -m benchmarks.throughput --out throughput.json          # FLAN-T5-base's shape
    python -m benchmarks.throughput --size tiny --steps 3          # a dry run on a CPU

Each row is a run of ``train.py fit`` in a separate process, on a model with random weights in the
shape of FLAN-T5 and on the miniature's dialogues. Steps are timed by a callback that waits for the
device; the first third of them, in which memory is laid out, does not count. Medians are printed.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

from common.hub import resolve_model
from common.run_folder import RunFolder, write_text
from common.versions import find_versions

SIZES: dict[str, dict[str, int]] = {
    "tiny": {"d_model": 64, "d_ff": 128, "d_kv": 16, "num_heads": 4, "num_layers": 2},
    "small": {"d_model": 512, "d_ff": 1024, "d_kv": 64, "num_heads": 6, "num_layers": 8},
    "base": {"d_model": 768, "d_ff": 2048, "d_kv": 64, "num_heads": 12, "num_layers": 12},
    "large": {"d_model": 1024, "d_ff": 2816, "d_kv": 64, "num_heads": 16, "num_layers": 24},
    "xl": {"d_model": 2048, "d_ff": 5120, "d_kv": 64, "num_heads": 32, "num_layers": 24},
}
"""Shapes of FLAN-T5; the vocabulary is 32,128 tokens except in ``tiny``."""

TIMES = "step_times.json"
PHASES = ("time/rollout", "time/score", "time/update", "perf/samples_per_s")


class StepTimer(L.Callback):
    """Write the seconds and rows of each training step to the run folder."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self.began = 0.0

    def on_train_batch_start(self, *_: Any) -> None:
        """Start the clock."""
        self.began = read_clock()

    def on_train_batch_end(
        self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Stop the clock once the device has finished."""
        rows, tokens = batch["input_ids"].shape[0], int(batch["attention_mask"].sum())
        seconds = read_clock() - self.began
        self.steps.append({"seconds": seconds, "rows": rows, "tokens": tokens})
        write_text(Path(trainer.default_root_dir) / TIMES, json.dumps(self.steps))


def read_clock() -> float:
    """Return the time in seconds, after everything queued on the device is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def save_model(folder: Path, size: str) -> str:
    """Save a T5 with random weights, an untied head, and the miniature's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(resolve_model("mini"))
    tokenizer.save_pretrained(folder)
    shape = SIZES[size] | {"num_decoder_layers": SIZES[size]["num_layers"]}
    vocabulary = len(tokenizer) if size == "tiny" else 32_128
    config = T5Config(
        **shape, vocab_size=vocabulary, feed_forward_proj="gated-gelu", decoder_start_token_id=0
    )
    model = T5ForConditionalGeneration(config)
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight) * 0.05)
    model.save_pretrained(folder)
    return str(folder)


def measure(
    method: str, backbone: str, folder: Path, options: argparse.Namespace
) -> dict[str, Any]:
    """Run a method for some steps; return its median speed and its peak memory."""
    command = [
        sys.executable, "train.py", "fit", "--config", f"configs/{method}.yaml",
        "--config", "configs/overlays/mini.yaml", "--model.backbone", backbone,
        "--run_dir", str(folder), "--trainer.default_root_dir", str(folder),
        "--trainer.accelerator", "auto", "--trainer.precision", options.precision,
        "--data.batch_size", str(options.batch_size), "--trainer.max_epochs", "1",
        "--trainer.limit_train_batches", str(options.steps), "--trainer.limit_val_batches", "0",
        "--trainer.num_sanity_val_steps", "0", "--checkpoint.monitor", "null",
        "--trainer.callbacks", "[]", "--trainer.callbacks+", "benchmarks.throughput.StepTimer",
    ]  # fmt: skip
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603
    run = RunFolder(folder)
    kept = json.loads((folder / TIMES).read_text())[options.steps // 3 :]
    row: dict[str, Any] = {"method": method, "seconds a step": median(kept, "seconds")}
    row["rows/s"] = statistics.median(step["rows"] / step["seconds"] for step in kept)
    row["prompt tokens/s"] = statistics.median(step["tokens"] / step["seconds"] for step in kept)
    logged = [line for line in run.read_metrics_csv() if line.get("time/rollout")]
    for name in PHASES:
        row[name] = median(logged[len(logged) // 3 :], name) if logged else None
    row["peak GiB"] = run.read_summary()["peak_memory_bytes"] / 2**30
    return row


def median(rows: Sequence[Any], name: str) -> float:
    """Return the median of a column."""
    return statistics.median(float(row[name]) for row in rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write a JSON file if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--methods", nargs="+", default=["full_ft", "lora", "ppo"])
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--precision", default="32-true", help="such as bf16-mixed on a GPU")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        backbone = save_model(Path(folder) / "t5", options.size)
        rows = [measure(m, backbone, Path(folder) / m, options) for m in options.methods]
    table = Table(*rows[0], title=f"FLAN-T5-{options.size}, batches of {options.batch_size}")
    for row in rows:
        table.add_row(
            *(f"{v:.4g}" if isinstance(v, float) else str(v or "-") for v in row.values())
        )
    Console(width=140).print(table)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    if options.out:
        about = {"device": device, "versions": find_versions(), "rows": rows}
        write_text(options.out, json.dumps(about | vars(options) | {"out": None}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
