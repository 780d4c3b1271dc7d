"""How busy is a GPU kept? Training, PPO phase by phase, and the decoding step of a rollout.

    python -m benchmarks.gpu --out gpu.json          # on a GPU
    python -m benchmarks.gpu --tiny                  # a dry run of all parts, on a CPU

A T5 of FLAN-T5-base's shape and a RoBERTa of its base shape, with random weights and random tokens,
in bf16-mixed. Each part is run as it is and compiled:

- Training, all weights or a LoRA, under a Lightning Trainer: tokens a second (none is padding), and
  the operations of the step's products, as torch counts them, against the peak of the GPU's data
  sheet and against one large product, measured here.
- PPO of a LoRA policy: samples a second, and the seconds of its phases.
- A decoding step, against the time that its bytes (weights in bf16, keys and values) take at the
  bandwidth of a copy, measured here.

Medians; the first steps, in which things are compiled and memory is laid out, are not counted.
"""

import argparse
import json
import logging
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.gpu_machine import BASE, TINY, Machine, Scale
from benchmarks.gpu_parts import measure_decoding, measure_ppo, measure_training
from benchmarks.models import save_roberta, save_t5
from common.hub import load_tokenizer
from common.run_folder import write_text
from common.versions import find_versions

console = Console(width=140)


def make_table(title: str, rows: Sequence[dict[str, Any]]) -> Table:
    """Show the rows of a part."""
    table = Table(*rows[0], title=title)
    for row in rows:
        cells = [f"{value:.4g}" if isinstance(value, float) else value for value in row.values()]
        table.add_row(*("-" if cell is None else str(cell) for cell in cells))
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write; 2 where there is no GPU."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10, help="steps of each row that count")
    parser.add_argument("--peak_tflops", type=float, help="of the GPU in bf16, by its data sheet")
    parser.add_argument("--tiny", action="store_true", help="a dry run on a CPU, on tiny models")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args(arguments)
    if not options.tiny and not torch.cuda.is_available():
        console.print(
            "error: there is no CUDA GPU here, and a CPU's figures would say nothing of one; "
            "--tiny makes a dry run", style="red",
        )  # fmt: skip
        return 2
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    scale = TINY if options.tiny else BASE
    machine = Machine(scale, options.peak_tflops and options.peak_tflops * 1e12)
    with tempfile.TemporaryDirectory() as folder:
        models = make_models(Path(folder), scale)
        parts = {
            "training": measure_training(machine, scale, models[0], options.rounds),
            "ppo": measure_ppo(machine, scale, models, options.rounds),
            "decoding": measure_decoding(machine, scale, models[0], options.rounds),
        }
    for name, rows in parts.items():
        console.print(make_table(name, rows))
    about = {
        "machine": machine.name, "rows": scale.rows, "source": scale.source,
        "target": scale.target, "product_tflops": machine.product / 1e12,
        "peak_tflops": machine.peak and machine.peak / 1e12,
        "copy_gb_per_s": machine.bandwidth / 1e9, "versions": find_versions(),
    }  # fmt: skip
    console.print(about)
    if options.out:
        write_text(options.out, json.dumps(about | parts, indent=2) + "\n")
    return 0


def make_models(folder: Path, scale: Scale) -> tuple[str, str]:
    """Save a T5 and a classifier; with the miniature's tokenizers, for FLAN's cannot be had."""
    t5, roberta = folder / "t5", folder / "roberta"
    load_tokenizer("mini").save_pretrained(t5)
    load_tokenizer("mini", "classifier").save_pretrained(roberta)
    return save_t5(t5, scale.t5), save_roberta(roberta, scale.roberta)


if __name__ == "__main__":
    sys.exit(main())
