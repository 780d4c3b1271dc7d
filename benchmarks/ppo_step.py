"""What does a PPO step cost, phase by phase, and how near is that to what it must cost?

    OMP_NUM_THREADS=2 OMP_PROC_BIND=true python -m benchmarks.ppo_step

A policy of FLAN-T5-base's shape and a reward model of RoBERTa-base's, both with random weights;
16 prompts of real dialogues, 48 new tokens each, one epoch in minibatches of 4; the product's own
PPOPolicy under a Lightning Trainer. Each round takes a step and then does the matrix products of a
step alone, at their shapes and on the same weights: the floor. Medians over the rounds; the ratio
is the median of the rounds' own ratios, as machines drift.
"""

import argparse
import logging
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader

from benchmarks.floor import Recorder, replay
from benchmarks.models import make_batch_of_dialogues, save_roberta_base, save_t5_base
from lightning_modules import PPOPolicy
from lightning_modules.ppo import rollout
from lightning_modules.ppo.config import PPOConfig
from lightning_modules.ppo.policy_kinds import LoRAPolicy
from lightning_modules.ppo.reward_terms import ClassifierReward

PROMPTS, NEW_TOKENS = 16, 48
DECODER = r".*decoder.*\.(q|v)"
PHASES = ("rollout", "score", "reference", "update")

console = Console(width=120)


class Timed(PPOPolicy):
    """Times its steps; the first one, in which memory is laid out, is for the recorder."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.recorder: Recorder | None = None
        self.rounds: list[dict[str, float]] = []
        self.now: dict[str, float] = {}

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """Take a step, and replay its products."""
        self.pass_gate(rollout.Prompts(batch["input_ids"], batch["attention_mask"]))
        if self.recorder is None:
            judges = [t.load() for t in self.terms.values() if isinstance(t, ClassifierReward)]
            weights = [p for each in (self, *judges) for p in each.parameters()]
            self.recorder = Recorder(weights)
            with self.recorder:
                return super().training_step(batch, batch_idx)
        self.now = {}
        started = time.perf_counter()
        output = super().training_step(batch, batch_idx)
        self.now["step"] = time.perf_counter() - started
        self.now["rollout"] = self.now.pop("time/rollout") - self.now["reference"]
        self.now["floor"] = replay(self.recorder.products)
        self.rounds.append(self.now)
        return output

    def log_step(self, values: Any) -> None:
        """Keep the seconds."""
        for name in ("time/rollout", "time/score", "time/update"):
            if name in values:
                self.now[name if name == "time/rollout" else name[5:]] = values[name]


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


def measure(
    t5: str, roberta: str, targets: Any, precision: str, rounds: int, batch: Any
) -> tuple[list[dict[str, float]], int]:
    """Take so many steps; give their seconds and the floating-point operations of one."""
    torch.manual_seed(0)
    module = Timed(
        backbone=t5,
        reward_model=roberta,
        policy=LoRAPolicy(r=32, alpha=32, target_modules=targets),
        ppo=PPOConfig(max_new_tokens=NEW_TOKENS, epochs=1, minibatch_size=4),
    )
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", precision=precision, logger=False,  # type: ignore[arg-type]
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    with timed_reference(module):
        batches: Any = [batch] * (rounds + 1)
        trainer.fit(module, DataLoader(batches, batch_size=None))
    assert module.recorder is not None  # noqa: S101 (for the type checker)
    return module.rounds, sum(product.flops for product in module.recorder.products)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="steps of each row")
    parser.add_argument("--only", choices=("fp32", "bf16", "decoder"), help="one row of the table")
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    rows = {
        "fp32": ("q and v", ["q", "v"], "32-true"),
        "bf16": ("q and v", ["q", "v"], "bf16-mixed"),
        "decoder": ("q and v of the decoder", DECODER, "32-true"),
    }
    table = Table(
        "LoRA on", "precision", *(f"{phase}, s" for phase in PHASES), "step, s", "TFLOP",
        "floor, s", "step / floor", title="A PPO step: 16 prompts, 48 new tokens, CPU",
    )  # fmt: skip
    steps = {}
    with tempfile.TemporaryDirectory() as folder:
        t5 = save_t5_base(Path(folder, "t5"))
        roberta = save_roberta_base(Path(folder, "roberta"))
        batch = make_batch_of_dialogues(t5, PROMPTS)
        for name, (label, targets, precision) in rows.items():
            if options.only not in (None, name):
                continue
            rounds, flops = measure(t5, roberta, targets, precision, options.rounds, batch)
            median = {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}
            ratio = statistics.median(r["step"] / r["floor"] for r in rounds)
            steps[name] = median["step"]
            table.add_row(
                label, precision, *(f"{median[phase]:.2f}" for phase in PHASES),
                f"{median['step']:.2f}", f"{flops / 1e12:.2f}", f"{median['floor']:.2f}",
                f"{ratio:.2f}",
            )  # fmt: skip
    console.print(table)
    size = tuple(batch["input_ids"].shape)
    console.print(
        f"prompts padded to {size}, {int(batch['attention_mask'].sum())} real tokens; "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    if {"fp32", "decoder"} <= set(steps):
        console.print(f"decoder only is {steps['fp32'] / steps['decoder']:.2f} times faster")


if __name__ == "__main__":
    main()
