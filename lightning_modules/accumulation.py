"""One optimizer step over several micro-batches: each token counts the same, however it was cut."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Part:
    """What one micro-batch has brought into the step, on this rank."""

    loss: Tensor
    """Sum of its losses, a scalar without gradient."""

    count: Tensor
    """How many losses are in it, a scalar."""

    batch: Mapping[str, Any]
    """It, with the "ids" of its rows."""


class StepLoss:
    """The losses of all micro-batches, on all ranks, that one optimizer step learns from.

    The mean of the micro-batches' means is not the mean over their tokens: a short micro-batch
    would weigh as much as a long one. So each brings its sum, over the count of the step's first
    micro-batch (known before its backward pass, and the whole count where nothing is accumulated),
    and :meth:`close` gives the factor that is still missing when all of them are counted.

    Args:
        sum_over_ranks: Sums a tensor over the ranks.
        world_size: Number of ranks.
        accumulate: Micro-batches in a step; Lightning divides each loss by it.
    """

    def __init__(
        self, sum_over_ranks: Callable[[Tensor], Tensor], world_size: int, accumulate: int
    ) -> None:
        self.sum_over_ranks = sum_over_ranks
        self.world_size = world_size
        self.accumulate = accumulate
        self.parts: list[Part] = []
        self._first_count = torch.ones(())
        self.mean = torch.full((), torch.nan)
        """Of all losses of the step, on all ranks, once it is closed."""

    def add(self, loss_sum: Tensor, count: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """Count a micro-batch in.

        Args:
            loss_sum: Sum of its losses on this rank, a scalar with gradient.
            count: How many losses are in it, a scalar.
            batch: It, with the "ids" of its rows.

        Returns:
            The loss to go backward on. Without accumulation it is the mean over all ranks: DDP
            averages their gradients, hence times ranks.
        """
        if not self.parts:
            self._first_count = self.sum_over_ranks(count)
        self.parts.append(Part(loss_sum.detach(), count, batch))
        return loss_sum * self.world_size / self._first_count

    def close(self) -> Tensor:
        """End the step and take its mean.

        Returns:
            What the accumulated gradients have to be multiplied by to be those of the mean: a
            scalar, the same on all ranks.
        """
        sums = [torch.stack([part.loss, part.count.to(part.loss.dtype)]) for part in self.parts]
        loss, count = self.sum_over_ranks(torch.stack(sums).sum(dim=0))
        self.mean = loss / count
        return self.accumulate * self._first_count / count

    def blame(self) -> list[str]:
        """Give the rows of this rank whose loss is not finite, of all where no loss tells."""
        bad = [part for part in self.parts if not torch.isfinite(part.loss)]
        return [row for part in bad or self.parts for row in part.batch["ids"]]
