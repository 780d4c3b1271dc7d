"""What does a PPO step cost, phase by phase, and how near is that to what it must cost?

    OMP_NUM_THREADS=2 OMP_PROC_BIND=true python -m benchmarks.ppo_step

A policy of FLAN-T5-base's shape and a reward model of RoBERTa-base's, both with random weights;
16 prompts of real dialogues, 48 new tokens each, one epoch in minibatches of 4; the product's own
PPOPolicy under a Lightning Trainer.

Each round takes a step, after one that is not counted, and then does the matrix products of a step
alone, at their shapes and on the same weights: the floor, by torch's own mm and bmm. The floor of
the kernels that the step really used, oneDNN's in fp32 and with weights laid out for decoding,
stands beside it. The rows of the table take turns round by round. Medians over the rounds; ratios
are medians of the rounds' own ratios, as machines drift.
"""

import argparse
import logging
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader

from benchmarks.floor import Recorder, replay
from benchmarks.models import make_batch_of_dialogues, save_roberta_base, save_t5_base
from datamodules.batching import Batch
from lightning_modules import PPOPolicy
from lightning_modules.ppo import rollout
from lightning_modules.ppo.config import PPOConfig
from lightning_modules.ppo.policy_kinds import LoRAPolicy
from lightning_modules.ppo.reward_terms import ClassifierReward
from lightning_modules.ppo.token_scores import Prompts

PROMPTS, NEW_TOKENS = 16, 48
PHASES = ("rollout", "score", "reference", "update")


class Row(NamedTuple):
    """A row of the table: what is adapted, and in which precision."""

    label: str
    targets: Any
    precision: Any


ROWS = {
    "fp32": Row("q and v", ["q", "v"], "32-true"),
    "bf16": Row("q and v", ["q", "v"], "bf16-mixed"),
    "decoder": Row("q and v of the decoder", r".*decoder.*\.(q|v)", "32-true"),
}

console = Console(width=140)


class Timed(PPOPolicy):
    """Times its steps but for the first of a turn, which lays out memory that others had.

    The very first is for the recorder.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.recorder: Recorder | None = None
        self.rounds: list[dict[str, float]] = []
        self.now: dict[str, float] = {}

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """Take a step, and replay its products."""
        self.pass_gate(Prompts(batch["input_ids"], batch["attention_mask"]))
        if self.recorder is None:
            judges = [t.load() for t in self.terms.values() if isinstance(t, ClassifierReward)]
            weights = [p for each in (self, *judges) for p in each.parameters()]
            self.recorder = Recorder(weights)
            with self.recorder:
                return super().training_step(batch, batch_idx)
        if batch_idx == 0:
            return super().training_step(batch, batch_idx)
        self.now = {}
        started = time.perf_counter()
        output = super().training_step(batch, batch_idx)
        self.now["step"] = time.perf_counter() - started
        self.now["rollout"] = self.now.pop("time/rollout") - self.now["reference"]
        for name, own in (("floor", False), ("own floor", True)):
            self.now[name] = replay(self.recorder.products, own)
            self.now[f"step / {name}"] = self.now["step"] / self.now[name]
        self.rounds.append(self.now)
        return output

    def log_step(self, values: Any) -> None:
        """Keep the seconds."""
        for name in ("time/rollout", "time/score", "time/update"):
            if name in values:
                self.now[name if name == "time/rollout" else name[5:]] = values[name]

    def flops(self) -> int:
        """Count the floating-point operations of a step's products."""
        return sum(product.flops for product in self.recorder.products) if self.recorder else 0

    def median(self, name: str) -> float:
        """Give the median of a figure over the rounds."""
        return statistics.median(each[name] for each in self.rounds)


@contextmanager
def timed_reference(module: Timed) -> Iterator[None]:
    """Time what is done as the reference inside a ``with`` block."""
    original = rollout.reference_policy

    @contextmanager
    def timed(*arguments: Any) -> Iterator[Any]:
        started = time.perf_counter()
        with original(*arguments) as reference:
            yield reference
        module.now["reference"] = time.perf_counter() - started

    rollout.reference_policy = timed  # type: ignore[assignment]
    try:
        yield
    finally:
        rollout.reference_policy = original


def take_turn(module: Timed, precision: Any, batch: Batch) -> None:
    """Take two steps under a Trainer."""
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", precision=precision, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    batches: Any = [batch, batch]
    with timed_reference(module):
        trainer.fit(module, DataLoader(batches, batch_size=None))


def measure(rows: dict[str, Row], rounds: int, folder: Path) -> tuple[dict[str, Timed], Batch]:
    """Measure so many steps of each row, in turn."""
    t5, roberta = save_t5_base(folder / "t5"), save_roberta_base(folder / "roberta")
    batch = make_batch_of_dialogues(t5, PROMPTS)
    modules = {}
    for name, row in rows.items():
        torch.manual_seed(0)
        modules[name] = Timed(
            backbone=t5,
            reward_model=roberta,
            policy=LoRAPolicy(r=32, alpha=32, target_modules=row.targets),
            ppo=PPOConfig(max_new_tokens=NEW_TOKENS, epochs=1, minibatch_size=4),
        )
        modules[name].terms = next(iter(modules.values())).terms  # one judge in memory for all
    for _ in range(rounds):
        for name, row in rows.items():
            take_turn(modules[name], row.precision, batch)
    return modules, batch


def make_table(rows: dict[str, Row], modules: dict[str, Timed]) -> Table:
    """Give the medians of each row."""
    seconds = (*PHASES, "step", "floor", "own floor")
    ratios = ("step / floor", "step / own floor")
    table = Table(
        "LoRA on", "precision", *(f"{name}, s" for name in seconds), "TFLOP", *ratios,
        title="A PPO step: 16 prompts, 48 new tokens, CPU",
    )  # fmt: skip
    for name, row in rows.items():
        module = modules[name]
        table.add_row(
            row.label, row.precision, *(f"{module.median(each):.2f}" for each in seconds),
            f"{module.flops() / 1e12:.2f}", *(f"{module.median(each):.2f}" for each in ratios),
        )  # fmt: skip
    return table


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="steps of each row")
    parser.add_argument("--only", choices=tuple(ROWS), help="one row of the table")
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    rows = {name: row for name, row in ROWS.items() if options.only in (None, name)}
    with tempfile.TemporaryDirectory() as folder:
        modules, batch = measure(rows, options.rounds, Path(folder))
    console.print(make_table(rows, modules))
    size = tuple(batch["input_ids"].shape)
    console.print(
        f"prompts padded to {size}, {int(batch['attention_mask'].sum())} real tokens; "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    if {"fp32", "decoder"} <= set(rows):
        pairs = zip(modules["fp32"].rounds, modules["decoder"].rounds, strict=True)
        faster = statistics.median(first["step"] / second["step"] for first, second in pairs)
        console.print(f"decoder only is {faster:.2f} times faster")


if __name__ == "__main__":
    main()
