"""Work of the ranks in tests; each rank imports this file."""

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
    """Learn from rollouts in a file, each rank from its share of the rows, and save the result.

    Args:
        folder: Holds ``rollout.pt``; each rank writes ``<rank>.pt`` here, with the weights,
            gradients and metrics of its last step, and the state of the loop.
        shares: Rows of each rank.
        **settings: See :class:`PPOPolicy`.
    """

    def __init__(self, folder: Path, shares: Sequence[Sequence[int]], **settings: Any) -> None:
        super().__init__(**settings)
        self.folder, self.shares = folder, shares
        self.gate_passed = True

    def load_model(self) -> None:
        """Start every run from the same LoRA, which changes the outputs."""
        torch.manual_seed(0)
        super().load_model()
        move_lora(self.model)

    def rollout(self, batch: Any) -> Rollout:
        """Read them."""
        rollout: Rollout = torch.load(self.folder / "rollout.pt", weights_only=False)
        return rollout.rows(torch.tensor(self.shares[self.global_rank]))

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Keep the gradients of the step, which some strategies free in it."""
        trained = {name: p for name, p in self.named_parameters() if p.requires_grad}
        self.gradients = {n: None if p.grad is None else full(p.grad) for n, p in trained.items()}

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Save gradients, weights, metrics and state after the step."""
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
    """Reward the number of different letters."""
    return [len(set(text)) / 10 for text in predictions]


def count_here(weight: torch.Tensor) -> int:
    """Count the elements of a weight that this rank holds now."""
    return (weight.to_local() if isinstance(weight, DTensor) else weight).numel()


class SeenRows(L.Callback):
    """Record the rows and this rank's share of the model for each training batch.

    They go to ``seen<rank>.jsonl``; the share is measured after the optimizer step.
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
