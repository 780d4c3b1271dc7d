"""SteppingModule: optimizer steps that are the same however their rows were cut and dealt out."""

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from lightning_modules.accumulation import StepLoss
from lightning_modules.randomness import seed_at

TRAINING, VALIDATION = 0, 1
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
    """Whether the weights stand between two places that a run can go on from: a batch of several
    optimizer steps has taken some of them."""

    _step_loss: StepLoss | None = None

    def sum_losses(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Give the sum of the losses in a batch, and how many they are: two scalars."""
        raise NotImplementedError

    def sum_over_ranks(self, value: Tensor) -> Tensor:
        """Sum a tensor over all ranks; without gradient."""
        if self.trainer.world_size == 1:
            return value
        return self.trainer.strategy.reduce(value.detach().clone(), reduce_op="sum")

    def setup(self, stage: str) -> None:
        """Refuse a strategy that would average over micro-batches; note the seed.

        Raises:
            ValueError: If it would.
        """
        strategy = self.trainer.strategy
        if strategy.handles_gradient_accumulation:
            raise ValueError(
                f"trainer.strategy: {type(strategy).__name__} accumulates gradients itself, and "
                "would weigh every micro-batch alike, however many tokens are in it; use ddp"
            )
        self.seed = torch.initial_seed()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Open an optimizer step: its sums, and its random numbers."""
        accumulate = self.trainer.accumulate_grad_batches
        if batch_idx % accumulate == 0:
            self._step_loss = StepLoss(self.sum_over_ranks, self.trainer.world_size, accumulate)
            seed_at(self.seed, TRAINING, self.global_rank, self.current_epoch, batch_idx)

    def on_validation_start(self) -> None:
        """Start the random numbers of a validation within a fit: texts may be sampled in it."""
        if self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking:
            seed_at(self.seed, VALIDATION, self.global_rank, self.current_epoch, self.global_step)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """Bring a micro-batch into the optimizer step.

        A micro-batch may be without rows on this rank: see ``LengthBatchSampler``.
        """
        loss_sum, count = self.sum_losses(batch) if batch["ids"] else self._nothing()
        return self.step_loss.add(loss_sum, count, batch["ids"])

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
            if self.trainer.accumulate_grad_batches > 1:
                for gradient in gradients(optimizer):
                    gradient.mul_(factor)
            return loss

        super().optimizer_step(epoch, batch_idx, optimizer, closure)

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Log the step's loss and the norm of its gradients, and clip them as the Trainer says.

        Raises:
            FloatingPointError: If one of the two is not finite, with the rows; on every rank, and
                before any weight is touched.
        """
        found = {
            "train/loss": self.step_loss.mean,
            "train/grad_norm": torch.nn.utils.get_total_norm(gradients(optimizer)),
        }
        if not torch.isfinite(torch.stack(list(found.values()))).all():
            values = ", ".join(f"{name} is {value.item()}" for name, value in found.items())
            raise FloatingPointError(
                f"{values} at step {self.global_step}, on rows "
                f"{', '.join(self.step_loss.blame()[:8])}; the last checkpoint is untouched. "
                "Try a lower learning rate, or precision 32-true"
            )
        for name, value in found.items():
            shown = name == "train/loss"
            self.log(name, value, on_step=True, on_epoch=False, prog_bar=shown, batch_size=1)
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)


def gradients(optimizer: Any) -> list[Tensor]:
    """Give the gradients of all weights that an optimizer trains and that have one."""
    weights = (weight for group in optimizer.param_groups for weight in group["params"])
    return [weight.grad for weight in weights if weight.grad is not None]
