"""The two sides of benchmarks.sft_throughput: processes that train a step when they are told to.

Each plans an epoch with its own sampler, and trains with its own collator, loop and model.
"""

import train  # isort: skip (imports lightning first: see there)
import os
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import (
    AutoModelForSeq2SeqLM,
    DataCollatorForSeq2Seq,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
)

from alignsum.cli import AlignsumCLI
from benchmarks.models import save_t5_base
from datamodules import DialogSumDataModule
from datamodules.batching import IGNORED_LABEL
from datamodules.dialogsum import ExampleDataset

__all__ = ["prepare", "run_ours", "run_theirs", "train"]

ROWS = 496
"""Rows trained on, of DialogSum's dev split of 500: whole batches for both."""

WARMUP = 2
"""Steps before the first round, one of them on the longest batch."""

SOURCE, TARGET = 512, 128
"""Most tokens of a source and of a target, and what all are padded to where padding is fixed."""

CONFIGS = {"full": "configs/full_ft.yaml", "lora": "configs/lora.yaml"}
RATES = {"full": 5e-5, "lora": 1e-3}


@dataclass(frozen=True)
class Task:
    """What is trained, the same for both sides.

    Attributes:
        folder: Holds ``backbone`` and ``data``, and takes what a run writes.
        method: Train all weights, or a LoRA of rank 32 on q and v.
        precision: As Lightning names it.
        fixed: Theirs pads every source to 512 tokens and every target to 128.
        rounds: Rounds that a side may be asked for.
        of: The epoch is dealt out to so many rounds.
        batch: Rows of a batch.
    """

    folder: Path
    method: Literal["full", "lora"]
    precision: Literal["32-true", "bf16-mixed"]
    fixed: bool
    rounds: int
    of: int
    batch: int = 8


@dataclass(frozen=True)
class Step:
    """One training step: its time, and how many tokens of its batch are real.

    Attributes:
        seconds: From the end of the last step: fetch, collate, forward, backward, update.
        rows: Rows of the batch.
        real: Source and target tokens that are no padding.
        padded: All of the batch's source and target tokens.
        peak: Most memory of the process so far, in GiB.
    """

    seconds: float
    rows: int
    real: int
    padded: int
    peak: float


class Gate:
    """Lets a training loop take one step for each message.

    Args:
        pipe: To the benchmark.
    """

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe
        self.started = 0.0

    def wait(self, report: Step | None = None) -> None:
        """Report the last step and wait to be told to take the next."""
        self.pipe.send(report)
        try:
            self.pipe.recv()
        except EOFError:  # the benchmark is gone; there is nothing to save or to export
            os._exit(1)
        self.started = time.perf_counter()

    def report(self, mask: Tensor, labels: Tensor) -> None:
        """Report a step on a batch with this attention mask and these labels."""
        seconds = time.perf_counter() - self.started
        real = int(mask.sum() + (labels != IGNORED_LABEL).sum())
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        self.wait(Step(seconds, len(mask), real, mask.numel() + labels.numel(), peak))


def choose(batches: Sequence[Sequence[int]], lengths: Sequence[int], task: Task) -> list[list[int]]:
    """Choose the batches of an epoch that are trained on: two to warm up, then round by round.

    Of the batches from the longest to the shortest, a round takes every ``of``-th. Rounds differ in
    where they start: all together they are the epoch, and few of them start as evenly spread as
    can be, so that they are like it, and like the other side's.
    """
    ordered = sorted(batches, key=lambda rows: -max(lengths[row] for row in rows))
    chosen = [ordered[0], ordered[len(ordered) // 2]]
    for place in range(task.rounds):
        chosen += ordered[(2 * place + 1) * task.of // (2 * task.rounds) :: task.of]
    return [list(rows) for rows in chosen]


def prepare(folder: Path, dialogues: Path) -> None:
    """Write a model of FLAN-T5-base's shape, and the dev split as both train and dev split."""
    # Learnt from so little text, 32,000 tokens would hold whole phrases, and prompts be too short.
    save_t5_base(folder / "backbone", tokens=8000)
    (folder / "data").mkdir()
    for split in ("train", "dev"):
        (folder / "data" / f"{split}.jsonl").write_bytes(
            (dialogues / "dialogsum.dev.jsonl").read_bytes()
        )


# Ours -------------------------------------------------------------------------------------------


class GateCallback(L.Callback):
    """Lightning's side of a :class:`Gate`."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Wait for the first step."""
        self.gate.wait()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        """Report a step."""
        self.gate.report(batch["attention_mask"], batch["labels"])


def run_ours(task: Task, pipe: Connection) -> None:
    """Train as ``train.py fit`` does, on the chosen batches of its epoch."""

    class Contestant(AlignsumCLI):
        def before_fit(self) -> None:
            self.trainer.callbacks.append(GateCallback(Gate(pipe)))  # type: ignore[attr-defined]
            self.datamodule.train_dataloader = only_chosen(self.datamodule, task)

    options = {
        "model.backbone": task.folder / "backbone",
        "data.source": task.folder / "data",
        "data.batch_size": task.batch, "data.max_train_rows": ROWS, "data.max_validation_rows": 8,
        "data.max_source_length": SOURCE, "data.max_target_length": TARGET,
        "data.pad_to_multiple_of": 1, "toxicity.model": "null",
        "trainer.precision": task.precision, "trainer.accelerator": "cpu",
        "trainer.max_epochs": 1, "trainer.num_sanity_val_steps": 0, "trainer.limit_val_batches": 0,
        "run_dir": task.folder / "ours", "overwrite": "true",
    }  # fmt: skip
    flags = [f"--{name}={value}" for name, value in options.items()]
    Contestant(["fit", "--config", CONFIGS[task.method], *flags])


def only_chosen(data: Any, task: Task) -> Callable[[], DataLoader[Any]]:
    """Make a datamodule's ``train_dataloader`` give the chosen batches only."""
    plan = data.train_dataloader

    def load() -> DataLoader[Any]:
        whole = plan()
        batches = choose(list(whole.batch_sampler), whole.dataset.lengths, task)
        return DataLoader(whole.dataset, batch_sampler=batches, collate_fn=whole.collate_fn)

    return load


# Theirs -----------------------------------------------------------------------------------------


class GateTrainerCallback(TrainerCallback):
    """transformers' side of a :class:`Gate`."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.inputs: dict[str, Tensor] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Wait for the first step."""
        self.gate.wait()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Report a step."""
        self.gate.report(self.inputs["attention_mask"], self.inputs["labels"])


class Rows(Dataset[dict[str, list[int]]]):
    """The tokens of our rows, as transformers wants them."""

    def __init__(self, dataset: ExampleDataset, fixed: bool) -> None:
        self.dataset = dataset
        self.fixed = fixed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        """Give one row."""
        row = self.dataset[index]
        source, target = row.source.tolist(), row.target.tolist()
        before, behind = (SOURCE - len(source), TARGET - len(target)) if self.fixed else (0, 0)
        return {
            "input_ids": source + [0] * before,
            "attention_mask": [1] * len(source) + [0] * before,
            "labels": target + [IGNORED_LABEL] * behind,
        }


class Contestant(Seq2SeqTrainer):
    """Their trainer, on the chosen batches of its epoch."""

    task: Task
    lengths: list[int]
    gated: GateTrainerCallback

    def _get_train_sampler(self, *args: Any) -> Any:
        rows = list(super()._get_train_sampler(*args))
        size = self.task.batch
        batches = [rows[i : i + size] for i in range(0, len(rows), size)]
        return [row for batch in choose(batches, self.lengths, self.task) for row in batch]

    def training_step(self, model: Any, inputs: Any, *args: Any) -> Any:
        self.gated.inputs = inputs
        return super().training_step(model, inputs, *args)


def run_theirs(task: Task, pipe: Connection) -> None:
    """Train by Seq2SeqTrainer on the same tokens."""
    backbone = str(task.folder / "backbone")
    data = DialogSumDataModule(
        str(task.folder / "data"), backbone,
        max_source_length=SOURCE, max_target_length=TARGET, max_train_rows=ROWS,
    )  # fmt: skip
    data.setup("fit")
    model = AutoModelForSeq2SeqLM.from_pretrained(backbone, dtype=torch.float32)
    if task.method == "lora":
        shape: dict[str, Any] = {"r": 32, "lora_alpha": 32, "lora_dropout": 0.05}
        config = LoraConfig(task_type=TaskType.SEQ_2_SEQ_LM, target_modules=["q", "v"], **shape)
        model = get_peft_model(model, config)
    gated = GateTrainerCallback(Gate(pipe))
    settings = Seq2SeqTrainingArguments(
        output_dir=str(task.folder / "theirs"), per_device_train_batch_size=task.batch,
        num_train_epochs=1, learning_rate=RATES[task.method], weight_decay=0.01, warmup_steps=0.03,
        max_grad_norm=1.0, bf16=task.precision == "bf16-mixed", use_cpu=True,
        train_sampling_strategy="random" if task.fixed else "group_by_length",
        report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = Contestant(
        model, settings, DataCollatorForSeq2Seq(data.tokenizer, model),
        Rows(data.datasets["train"], task.fixed), processing_class=data.tokenizer,
        callbacks=[gated],
    )  # fmt: skip
    trainer.task, trainer.lengths, trainer.gated = task, data.datasets["train"].lengths, gated
    trainer.train()
