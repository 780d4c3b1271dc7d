"""What a rank does in a test, in a file of its own: each rank imports all that is here."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch.distributed.tensor import DTensor

from lightning_modules import PPOPolicy
from lightning_modules.fsdp import full
from lightning_modules.ppo.rollout import Rollout
from tests.models import move_lora


class FixedRollouts(PPOPolicy):
    """Learns from rollouts in a file, each rank from its share of the rows, and keeps what it did.

    Args:
        folder: Holds ``rollout.pt``; each rank writes ``<rank>.pt`` here, with the weights,
            gradients and figures of its last step, and what the loop remembers.
        shares: Rows of each rank.
        **settings: See :class:`PPOPolicy`.
    """

    def __init__(self, folder: Path, shares: Sequence[Sequence[int]], **settings: Any) -> None:
        super().__init__(**settings)
        self.folder, self.shares = folder, shares
        self.gate_passed = True

    def load_model(self) -> None:
        """Start alike in every run, from a LoRA that changes something."""
        torch.manual_seed(0)
        super().load_model()
        move_lora(self.model)

    def rollout(self, batch: Any) -> Rollout:
        """Read them."""
        rollout: Rollout = torch.load(self.folder / "rollout.pt", weights_only=False)
        return rollout.rows(torch.tensor(self.shares[self.global_rank]))

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Keep the gradients that the step is taken with: some strategies free them in it."""
        trained = {name: p for name, p in self.named_parameters() if p.requires_grad}
        self.gradients = {n: None if p.grad is None else full(p.grad) for n, p in trained.items()}

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Write what the step left."""
        trained = {name: p for name, p in self.named_parameters() if p.requires_grad}
        kept = {
            "gradients": self.gradients,
            "weights": {name: full(p).detach() for name, p in trained.items()},
            "figures": outputs["step"].metrics,
            "loop": self.loop_state(),
        }
        torch.save(kept, self.folder / f"{self.global_rank}.pt")


def count_letters(
    predictions: list[str], dialogues: list[str], references: list[list[str]]
) -> list[float]:
    """A reward that tells texts apart."""
    return [len(set(text)) / 10 for text in predictions]


def count_here(weight: torch.Tensor) -> int:
    """Count the numbers that this rank has of a weight at the moment."""
    return (weight.to_local() if isinstance(weight, DTensor) else weight).numel()


class SeenRows(L.Callback):
    """Writes down for each training batch of this rank its rows and its share of the model.

    In ``seen<rank>.jsonl``; the share is taken behind the optimizer's step.
    """

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        path = Path(trainer.default_root_dir, f"seen{trainer.global_rank}.jsonl")
        weights = list(pl_module.parameters())
        here = sum(map(count_here, weights))
        seen = {"ids": batch["ids"], "share": here / sum(w.numel() for w in weights)}
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(seen) + "\n")
