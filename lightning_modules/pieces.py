"""PiecewiseModule: an optimizer step by pieces of its batches, once these do not fit the memory."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from datamodules.rows import take_rows
from lightning_modules.out_of_memory import Result, attempt
from lightning_modules.stepping import SteppingModule

log = logging.getLogger(__name__)


class PiecewiseModule(SteppingModule):
    """Halves a batch that does not fit the memory, and learns from the halves one after the other.

    The step begins again then, from its first micro-batch, with the random numbers that it began
    with. Its loss and gradients are those of the uncut batch, but for dropout, which draws others
    for each cut. From then on every batch is cut so that no piece is as large as the one that
    failed. On one rank alone: the others would be in the middle of their backward passes.
    """

    halve_on_oom = False
    """Whether to do so; otherwise the error ends the run."""

    room: int | None = None
    """Most tokens, padding included, that a piece may have, or most rows where work is done in
    passes; None is no limit."""

    _batches: list[Any]
    """The step's micro-batches up to now, uncut."""

    _is_learnt = False
    """Whether the micro-batch at hand has brought its gradients already."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Open an optimizer step."""
        super().on_train_batch_start(batch, batch_idx)
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self._batches = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """Bring a micro-batch into the optimizer step, by pieces where it has to be."""
        self._is_learnt = False
        self._batches.append(batch)
        if not self.halve_on_oom:
            return super().training_step(batch, batch_idx)
        if self.room is None:
            fits, loss = attempt(partial(super().training_step, batch, batch_idx))
            if fits:
                return loss
            self._shrink(batch)
            self._learn_by_pieces(0)
        else:
            self._learn_by_pieces(len(self._batches) - 1)
        return self.step_loss.parts[-1].loss

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Go backward, unless that was done piece by piece."""
        if self._is_learnt:
            return
        go = partial(super().backward, loss, *args, **kwargs)
        if not (self.halve_on_oom and self.automatic_optimization):
            go()
        elif not attempt(go)[0]:
            loss.detach_()  # Lightning holds the loss, and with it the activations of all layers
            self._shrink(self._batches[-1])
            self._learn_by_pieces(0)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        """Clear the gradients; Lightning does so behind the first batch's forward pass."""
        if not self._is_learnt:
            super().optimizer_zero_grad(epoch, batch_idx, optimizer)

    def in_passes(self, work: Callable[[int], Result], size: int) -> Result:
        """Do work in passes of a size, and in halves of it as long as it does not fit the memory.

        Raises:
            torch.OutOfMemoryError: If it does not, be it one by one or without ``halve_on_oom``.
        """
        while self.halve_on_oom and size > 1:
            fits, result = attempt(partial(work, size))
            if fits:
                return result  # type: ignore[return-value] # there is one where it fits
            self.room = size = size // 2
            log.warning("Out of memory: from here on %d rollouts in a pass", size)
        return work(size)

    def _learn_by_pieces(self, first: int) -> None:
        """Go forward and backward on each piece of the step's micro-batches from a number on.

        Where a piece does not fit, the step begins again with smaller ones.

        Raises:
            torch.OutOfMemoryError: If a single row does not fit.
        """
        while True:
            if first == 0:
                self.trainer.optimizers[0].zero_grad(set_to_none=True)
                self.open_step()
            pieces = (piece for batch in self._batches[first:] for piece in self._cut(batch))
            failed = next((piece for piece in pieces if not self._learn(piece)), None)
            if failed is None:
                self._is_learnt = True
                return
            self._shrink(failed)
            first = 0

    def _learn(self, piece: Any) -> bool:
        """Go forward and backward on a piece, and say whether it has fitted."""

        def go() -> None:
            # Where a backward pass begins the step again, Lightning takes no logs otherwise.
            self._current_fx_name = "training_step"
            with self.trainer.precision_plugin.train_step_context():
                loss = self.bring_in(piece)
            with torch.autocast(self.device.type, enabled=False):
                (loss / self.trainer.accumulate_grad_batches).backward()

        return attempt(go)[0]

    def _cut(self, batch: Any) -> list[Any]:
        """Halve a batch until its pieces fit."""
        rows = len(batch["ids"])
        if self.room is None or rows < 2 or count_tokens(batch) <= self.room:
            return [batch]
        halves = take_rows(batch, 0, rows // 2), take_rows(batch, rows // 2, rows)
        return [piece for half in halves for piece in self._cut(half)]

    def _shrink(self, batch: Any) -> None:
        """Allow no more pieces as large as this one."""
        rows, tokens = len(batch["ids"]), count_tokens(batch)
        if rows < 2:
            raise torch.OutOfMemoryError(f"out of memory on a single row of {tokens} tokens")
        self.room = tokens - 1
        log.warning(
            "Out of memory on %d rows of %d tokens in all: the step begins again, in halves. "
            "Batches are cut below this size from here on", rows, tokens,
        )  # fmt: skip


def count_tokens(batch: Any) -> int:
    """Count the places in what a model is given of a batch, padding included."""
    columns = batch | batch.get("inputs", {})
    names = ("input_ids", "labels", "responses")
    return sum(columns[name].numel() for name in names if name in columns)
