"""SteppingModule: optimizer steps that are the same however their rows were cut and dealt out."""

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from lightning_modules.accumulation import StepLoss
from lightning_modules.faults import Fault, Row, name_not_finite, readable_rows, stop_at
from lightning_modules.gradients import clip, gradient_norm, gradients
from lightning_modules.randomness import seed_at
from lightning_modules.strategies import find_rows_problem, find_strategy_problem

TRAINING, VALIDATION, TEST = 0, 1, 2
"""What random numbers are for: others for each."""


class SteppingModule(L.LightningModule):
    """Optimizer steps on the mean over all that was counted: on all ranks, in all micro-batches.

    A subclass gives :meth:`sum_losses`. With ``trainer.accumulate_grad_batches`` a step's loss and
    gradients are those of the same rows in one batch, and ``train/loss`` is logged once a step. The
    random numbers of a step are a function of the seed, the rank and the step's place in the run.
    """

    seed = 0
    """Of the run; a resumed run takes that of its checkpoint."""

    half_updated = False
    """Whether the batch at hand has begun to change the weights. They stand between two places that
    a run can go on from then, until it is done."""

    on_fault: Callable[[Fault], None] = staticmethod(stop_at)
    """Called where a number is not finite: it raises, or what it was met in is skipped."""

    _step_loss: StepLoss | None = None
    _random_source: tuple[int, ...] = ()
    """What the random numbers of the step that is under way are a function of."""

    def sum_losses(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Give the sum of the losses in a batch, and how many they are: two scalars."""
        raise NotImplementedError

    def sum_over_ranks(self, value: Tensor) -> Tensor:
        """Sum a tensor over all ranks; without gradient."""
        if self.trainer.world_size == 1:
            return value
        return self.trainer.strategy.reduce(value.detach().clone(), reduce_op="sum")

    def setup(self, stage: str) -> None:
        """Refuse a strategy that would take other steps; note the seed.

        Raises:
            ValueError: If it would.
        """
        problem = find_strategy_problem(self.trainer.strategy) or find_rows_problem(self.trainer)
        if problem:
            raise ValueError(problem)
        self.seed = torch.initial_seed()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Open an optimizer step: its sums, and its random numbers."""
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self._random_source = (
                self.seed, TRAINING, self.global_rank, self.current_epoch, batch_idx
            )  # fmt: skip
            self.open_step()

    def open_step(self) -> None:
        """Begin an optimizer step, or begin it again."""
        self._step_loss = StepLoss(
            self.sum_over_ranks, self.trainer.world_size, self.trainer.accumulate_grad_batches
        )
        seed_at(*self._random_source)

    def on_validation_start(self) -> None:
        """Start the random numbers of a validation within a fit: texts may be sampled in it."""
        if self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking:
            seed_at(self.seed, VALIDATION, self.global_rank, self.current_epoch, self.global_step)

    def on_test_start(self) -> None:
        """Draw by the seed of this command, also where a checkpoint has brought its run's."""
        self.seed = torch.initial_seed()

    def on_test_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Start the random numbers of a test batch."""
        self.seed_test_batch(batch_idx)

    def seed_test_batch(self, batch_idx: int) -> None:
        """Give whoever is tested on a batch the same random numbers."""
        seed_at(self.seed, TEST, self.global_rank, 0, batch_idx)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """Bring a micro-batch into the optimizer step.

        A micro-batch may be without rows on this rank: see ``LengthBatchSampler``.
        """
        return self.bring_in(batch)

    def bring_in(self, batch: Any) -> Tensor:
        """Count a micro-batch into the step, and give the loss to go backward on."""
        loss_sum, count = self.sum_losses(batch) if batch["ids"] else self._nothing()
        return self.step_loss.add(loss_sum, count, batch)

    def _nothing(self) -> tuple[Tensor, Tensor]:
        """A loss of 0 of which every trained weight has a gradient, as DDP asks, and its count."""
        zero = torch.zeros((), device=self.device)
        trained = (parameter for parameter in self.parameters() if parameter.requires_grad)
        return sum((0.0 * parameter.sum() for parameter in trained), zero), zero

    @property
    def step_loss(self) -> StepLoss:
        """The losses of the optimizer step that is under way."""
        if self._step_loss is None:
            raise RuntimeError("no optimizer step is open: on_train_batch_start opens one")
        return self._step_loss

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Finish the step's gradients right behind the backward pass, before any hook sees them."""

        def closure() -> Any:
            loss = None if optimizer_closure is None else optimizer_closure()
            factor = self.step_loss.close()
            if self.trainer.accumulate_grad_batches > 1 or len(self.step_loss.parts) > 1:
                for gradient in gradients(optimizer):
                    gradient.mul_(factor)
            return loss

        super().optimizer_step(epoch, batch_idx, optimizer, closure)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Note that the batch is done."""
        self.half_updated = False

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Log the step's loss and the norm of its gradients, and clip them as the Trainer says.

        If one of the two is not finite, ``on_fault`` decides, on every rank and before any weight
        is touched: it raises, or the step is skipped. A skipped step is a step: it counts, the
        schedule goes on, its rows were seen. Weights, the optimizer's moments and its own count
        stay as they are.

        Raises:
            FloatingPointError: If one of the two is not finite and the step is not to be skipped.
        """
        found = {
            "train/loss": self.step_loss.mean,
            "train/grad_norm": gradient_norm(optimizer),
        }
        for name, value in found.items():
            shown = name == "train/loss"
            self.log(name, value, on_step=True, on_epoch=False, prog_bar=shown, batch_size=1)
        if what := name_not_finite(found):
            self.on_fault(self._make_fault(what))
            # No optimizer touches a weight without gradient.
            optimizer.zero_grad(set_to_none=True)
            return
        clip(optimizer, gradient_clip_val, gradient_clip_algorithm, found["train/grad_norm"])
        self.half_updated = True

    def log_mean(self, name: str, value: Tensor, count: int, **settings: Any) -> None:
        """Log the mean over all that is counted, in all batches of an evaluation, on all ranks.

        Lightning averages the counts over the ranks, and rounds that down. Times ranks, the average
        is their sum, which is whole.

        Args:
            name: Of the metric.
            value: The batch's mean on this rank.
            count: How many values are in it.
            **settings: See ``log``.
        """
        ranks = 1 if self._trainer is None else self._trainer.world_size
        self.log(name, value, batch_size=count * ranks, sync_dist=True, **settings)

    def describe_rows(self, batch: Any) -> list[Row]:
        """Give the rows of a batch as values for people to read, for the record of a fault."""
        return readable_rows(batch)

    def _make_fault(self, what: str) -> Fault:
        """Describe the step that is under way."""
        parts = self.step_loss.parts
        rows = [
            row | {"micro_batch": number, "loss_sum": float(part.loss)}
            for number, part in enumerate(parts)
            for row in self.describe_rows(part.batch)
        ]
        content = {
            "batches": [part.batch for part in parts],
            "losses": [float(part.loss) for part in parts],
            "random": self._random_source,
        }
        place = f"step{self.global_step:08d}"
        return Fault(what, place, self.global_step, "step", self.step_loss.blame(), rows, content)
