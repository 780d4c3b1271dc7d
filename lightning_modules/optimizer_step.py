"""One optimizer step: exact means over micro-batches and ranks, seeds, clipping, finite checks.

A mean of micro-batch means is not the mean over their tokens: a short micro-batch would weigh as
much as a long one. Here a step's loss and gradient are a sum over all losses of all micro-batches
on all ranks, divided by their number, so they do not depend on how the rows were split.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor

from common.run_folder import RunFolder
from lightning_modules.fsdp import full

TRAINING, VALIDATION, TEST = 0, 1, 2
"""Purposes of random numbers; each has a separate stream."""


@dataclass
class StepSums:
    """Losses of the micro-batches of one optimizer step, on this rank.

    Args:
        sum_over_ranks: Sums a tensor over the ranks.
        world_size: Number of ranks.
    """

    sum_over_ranks: Callable[[Tensor], Tensor]
    world_size: int
    losses: list[Tensor] = field(default_factory=list)
    counts: list[Tensor] = field(default_factory=list)
    batches: list[Mapping[str, Any]] = field(default_factory=list)

    def add(self, loss_sum: Tensor, count: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """Add a micro-batch, and return the loss for its backward pass.

        That loss is divided by the count of the step's first micro-batch over all ranks, which is
        known before the backward pass; :meth:`gradient_factor` corrects it once all are counted.

        Args:
            loss_sum: Sum of its losses on this rank, a scalar with gradient.
            count: How many losses the sum has, a scalar.
            batch: The micro-batch, with the "ids" of its rows.
        """
        count = count.to(loss_sum.dtype)
        if not self.losses:
            self._first_count = self.sum_over_ranks(count)
        self.losses.append(loss_sum.detach())
        self.counts.append(count)
        self.batches.append(batch)
        return loss_sum * self.world_size / self._first_count  # DDP averages over the ranks

    def mean(self) -> Tensor:
        """Return the mean loss over all micro-batches and ranks: a scalar."""
        return self.sum_over_ranks(torch.stack(self.losses).sum()) / self._count()

    def gradient_factor(self) -> Tensor:
        """Return the factor from the accumulated gradients to those of the mean: a scalar."""
        return self._first_count / self._count()

    def _count(self) -> Tensor:
        return self.sum_over_ranks(torch.stack(self.counts).sum())

    def suspect_rows(self) -> list[str]:
        """Return ids of rows in micro-batches with a non-finite loss, or all ids if none has."""
        pairs = list(zip(self.losses, self.batches, strict=True))
        bad = [pair for pair in pairs if not torch.isfinite(pair[0])]
        return [row for _, batch in bad or pairs for row in batch["ids"]]


# Gradients --------------------------------------------------------------------------------------


def gradients(optimizer: Any) -> list[Tensor]:
    """List the gradients of an optimizer's weights, this rank's shards where they are sharded."""
    weights = (weight for group in optimizer.param_groups for weight in group["params"])
    return [weight.grad for weight in weights if weight.grad is not None]


def gradient_norm(optimizer: Any) -> Tensor:
    """Compute the norm of all gradients together, over all ranks that shard them: a scalar."""
    return full(torch.nn.utils.get_total_norm(gradients(optimizer)))


def clip_by_norm(optimizer: Any, max_norm: float, norm: Tensor) -> None:
    """Scale all gradients in place so that their norm, now ``norm``, is at most ``max_norm``."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    torch.nn.utils.clip_grads_with_norm_(weights, max_norm, norm)


# Random numbers ---------------------------------------------------------------------------------


def seed_step(seed: int, purpose: int, rank: int, step: int) -> None:
    """Seed Python's, NumPy's and torch's generators for one step of a run.

    Like JAX's ``fold_in``: the numbers depend on the arguments alone, so a resumed run needs no
    saved generator state to continue exactly.

    Args:
        seed: Seed of the run.
        purpose: ``TRAINING``, ``VALIDATION`` or ``TEST``.
        rank: Global rank.
        step: Optimizer steps, or test batches, before this one.
    """
    wide = np.random.SeedSequence((seed, purpose, rank, step)).generate_state(1, np.uint64)
    narrow = int(wide[0]) >> 32
    random.seed(narrow)
    np.random.seed(narrow)
    torch.manual_seed(int(wide[0]))


# Non-finite numbers -----------------------------------------------------------------------------


def stop_if_not_finite(
    module: L.LightningModule, values: Mapping[str, Tensor], ids: Sequence[str], batch: Any
) -> None:
    """Stop the run if a loss, gradient norm or reward is NaN or infinite.

    Call it before the weights change, on every rank with values that are the same on every rank.
    The batch goes to ``nonfinite/step<step>-rank<rank>.pt`` in the run folder, for ``torch.load``.

    Args:
        module: The module in training.
        values: Scalars by name.
        ids: Ids of the suspect rows on this rank.
        batch: The data behind the values: tensors and plain values in dicts, lists and tuples.

    Raises:
        FloatingPointError: If a value is not finite; names the values, the rows and the file.
    """
    numbers = torch.stack([value.detach().float() for value in values.values()]).tolist()
    bad = {n: value for n, value in zip(values, numbers, strict=True) if not isfinite(value)}
    if not bad:
        return
    what = ", ".join(f"{name} is {value}" for name, value in bad.items())
    step, folder = module.global_step, RunFolder(module.trainer.default_root_dir).nonfinite
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step{step:08d}-rank{module.global_rank}.pt"
    torch.save({"values": bad, "ids": list(ids), "batch": _plain(batch)}, path)
    rows = ", ".join(ids[:8]) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
    raise FloatingPointError(
        f"{what} at step {step}, on rows {rows or 'of another rank'}; no weight was changed by it, "
        f"the last checkpoint is untouched. The batch is in {path}. Try a lower learning rate, or "
        "precision 32-true"
    )


def _plain(value: Any) -> Any:
    """Move tensors to the CPU and turn tuples into lists, so that ``weights_only`` loads them."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
