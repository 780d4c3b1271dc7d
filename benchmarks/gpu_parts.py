"""The parts of benchmarks.gpu: training, PPO, and the decoding step of a rollout."""

import functools
import statistics
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu_machine import WARMUP, Machine, Scale, Stopwatch
from datamodules.batching import Batch
from lightning_modules import FullFT, LoRA, PPOPolicy
from lightning_modules.ppo.config import PPOConfig
from lightning_modules.ppo.decoder_steps import CompiledSteps, DecoderSteps, GrowingSteps


class Timed(PPOPolicy):
    """Keeps the seconds of its phases."""

    phases: list[dict[str, float]]

    def log_step(self, values: Any) -> None:
        """Keep them."""
        names = ("rollout", "score", "update")
        self.phases.append({name: float(values[f"time/{name}"]) for name in names})


def make_batch(scale: Scale) -> Batch:
    """Draw tokens at random: no padding, and no ends but the last."""
    generator = torch.Generator().manual_seed(0)
    source, labels = (
        torch.randint(10, 900, (scale.rows, length), generator=generator)
        for length in (scale.source, scale.target)
    )
    source[:, -1] = labels[:, -1] = 1
    names = [str(row) for row in range(scale.rows)]
    return {
        "input_ids": source, "attention_mask": torch.ones_like(source), "labels": labels,
        "index": torch.arange(scale.rows), "ids": names, "dialogues": names,
        "references": [[name] for name in names],
    }  # fmt: skip


def fit(module: L.LightningModule, machine: Machine, batch: Batch, rounds: int) -> list[float]:
    """Train for so many steps; give the seconds of those that count."""
    watch = Stopwatch(machine)
    clip = 1.0 if module.automatic_optimization else None
    trainer = L.Trainer(
        max_epochs=1, accelerator=machine.device.type, devices=1, precision="bf16-mixed",
        gradient_clip_val=clip, logger=False, enable_checkpointing=False, callbacks=[watch],
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    batches: Any = [batch] * (WARMUP + rounds)
    trainer.fit(module, DataLoader(batches, batch_size=None))
    return watch.seconds[WARMUP:]


def count_operations(module: Any, machine: Machine, batch: Batch) -> int:
    """Count the operations of a step's matrix products, forward and backward."""
    module.configure_model()
    module.to(machine.device)
    inputs: Any = {
        name: value.to(machine.device) if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
    }
    with FlopCounterMode(display=False) as counter:
        with torch.autocast(machine.device.type, torch.bfloat16):
            loss, _ = module.token_loss(inputs)
        loss.backward()
    return counter.get_total_flops()


def measure_training(machine: Machine, scale: Scale, t5: str, rounds: int) -> list[dict[str, Any]]:
    """Measure full fine-tuning and a LoRA."""
    batch, found = make_batch(scale), []
    methods: dict[str, Callable[..., Any]] = {
        "full": FullFT, "LoRA": functools.partial(LoRA, r=32, alpha=32),
    }  # fmt: skip
    for name, method in methods.items():
        operations = count_operations(method(backbone=t5), machine, batch)
        for backend in (None, scale.backends[0]):
            seconds = statistics.median(
                fit(method(backbone=t5, compile=backend), machine, batch, rounds)
            )
            rate = operations / seconds
            found.append({
                "method": name, "compile": backend, "step_s": seconds,
                "tokens_per_s": scale.rows * (scale.source + scale.target) / seconds,
                "tflop": operations / 1e12, "share_of_product": rate / machine.product,
                "share_of_peak": machine.peak and rate / machine.peak,
            })  # fmt: skip
    return found


def measure_ppo(
    machine: Machine, scale: Scale, models: tuple[str, str], rounds: int
) -> list[dict[str, Any]]:
    """Measure PPO's phases."""
    t5, roberta = models
    found = []
    first = scale.backends[0]
    for update, decoding in ((None, None), *((None, b) for b in scale.backends), (first, first)):
        ppo = PPOConfig(
            max_new_tokens=scale.target, minibatch_size=scale.rows // 4, compile_decoding=decoding
        )
        module = Timed(backbone=t5, reward_model=roberta, compile=update, ppo=ppo)
        module.phases = []
        seconds = statistics.median(fit(module, machine, make_batch(scale), rounds))
        phases = module.phases[WARMUP:]
        found.append({
            "compile": update, "compile_decoding": decoding,
            "samples_per_s": scale.rows / seconds, "step_s": seconds,
            **{f"{n}_s": statistics.median(each[n] for each in phases) for n in phases[0]},
        })  # fmt: skip
    return found


def count_bytes(model: Any, scale: Scale) -> float:
    """Count what a decoding step has to read: weights in bf16, keys and values half way."""
    # The encoder's keys and values were made in the first step; of the embedding it reads rows.
    idle = ("EncDecAttention.k.", "EncDecAttention.v.", "embed_tokens")
    weights = sum(
        weight.numel()
        for name, weight in model.get_decoder().named_parameters()
        if not any(part in name for part in idle)
    )
    weights += model.get_output_embeddings().weight.numel()
    shape = model.get_decoder().config
    places = scale.rows * (scale.source + scale.target / 2)
    return 2 * (weights + 2 * shape.num_layers * shape.num_heads * shape.d_kv * places)


@torch.no_grad()
def measure_decoding(machine: Machine, scale: Scale, t5: str, rounds: int) -> list[dict[str, Any]]:
    """Measure a decoding step with the head, as rollouts take it."""
    module = FullFT(backbone=t5)
    module.configure_model()
    model = module.model.to(machine.device).eval()
    hidden = torch.randn(scale.rows, scale.source, scale.t5["d_model"], device=machine.device)
    mask = torch.ones(hidden.shape[:2], dtype=torch.long, device=machine.device)
    tokens = torch.full((scale.rows,), 5, device=machine.device)
    floor = count_bytes(model, scale) / machine.bandwidth
    found = []
    for backend in (None, *scale.backends):

        def roll_out(backend: str | None = backend) -> None:
            steps: DecoderSteps = GrowingSteps(model, hidden, mask)
            if backend is not None:
                steps = CompiledSteps(model, hidden, mask, scale.target, backend)
            with torch.autocast(machine.device.type, torch.bfloat16), steps.prepare():
                for _ in range(scale.target):
                    model.get_output_embeddings()(steps(tokens))

        seconds = machine.time(roll_out, rounds) / scale.target
        found.append({
            "compile_decoding": backend, "step_s": seconds, "bytes_s": floor,
            "step / bytes": seconds / floor,
        })  # fmt: skip
    return found
