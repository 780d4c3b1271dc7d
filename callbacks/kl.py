"""The KL divergence between the policy and its reference, from the rollouts of PPO."""

import logging
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from lightning_modules.ppo.kl import k1, k3, per_sequence

log = logging.getLogger(__name__)


class KLCallback(Callback):
    """Log how the KL of the rollouts is spread over the batch, and stop the fit at a limit.

    PPOPolicy logs the batch means ``objective/kl`` (k1) and ``objective/kl_k3``, in nats per
    sequence. This callback adds, over all ranks,

    - ``objective/kl_std`` and ``objective/kl_max`` of k1: a high maximum at a low mean shows that
      the policy has left the reference on a few prompts only;
    - ``objective/kl_k3_max``: k3 has no negative terms, so large values do not cancel.

    Schulman 2020, "Approximating KL Divergence": k1 = log(pi / pi_ref), k3 = r - 1 - log r with
    r = pi_ref / pi, both summed over the tokens of a sequence.

    Args:
        limit: Mean k1 in nats per sequence above which the fit ends after the batch, with
            validation, checkpoint and export as usual; None never ends it.

    Raises:
        ValueError: If the limit is not positive.
    """

    def __init__(self, limit: float | None = None) -> None:
        if limit is not None and not limit > 0:
            raise ValueError(f"kl.limit must be above 0 or null, got {limit}")
        self.limit = limit

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *args: Any
    ) -> None:
        """Log the spread of this batch's KL, and compare its mean with the limit."""
        step = ppo_step(outputs)
        if step is None:
            return
        rollout = step.rollout
        logratios = rollout.logprobs, rollout.ref_logprobs
        kl = per_sequence(k1(*logratios), rollout.mask)
        moments = Moments.of(kl, trainer)
        pl_module.log("objective/kl_std", moments.std)
        for name, values in (
            ("objective/kl_max", kl),
            ("objective/kl_k3_max", per_sequence(k3(*logratios), rollout.mask)),
        ):
            pl_module.log(name, values.max(), sync_dist=True, reduce_fx="max")
        if self.limit is not None and moments.mean > self.limit:
            trainer.should_stop = True
            if trainer.is_global_zero:
                log.warning(
                    "The KL of %.2f nats per sequence is above kl.limit (%s): the fit ends after "
                    "step %d. Raise model.ppo.kl_coef or lower the learning rate",
                    moments.mean, self.limit, trainer.global_step,
                )  # fmt: skip


class Moments(NamedTuple):
    """Number, sum and sum of squares of values over all ranks; they add up over batches."""

    number: float = 0.0
    total: float = 0.0
    squares: float = 0.0

    @classmethod
    def of(cls, values: Tensor, trainer: L.Trainer) -> "Moments":
        """Measure values [N] of all ranks."""
        values = values.double()
        sums = torch.stack([values.new_tensor(len(values)), values.sum(), values.square().sum()])
        if trainer.world_size > 1:
            sums = trainer.strategy.reduce(sums, reduce_op="sum")
        return cls(*sums.tolist())

    def add(self, other: "Moments") -> "Moments":
        """Combine the values of two batches."""
        return Moments(*(a + b for a, b in zip(self, other, strict=True)))

    @property
    def mean(self) -> float:
        """Return the mean."""
        return self.total / self.number

    @property
    def std(self) -> float:
        """Return the biased standard deviation."""
        return max(0.0, self.squares / self.number - self.mean**2) ** 0.5


def ppo_step(outputs: Any) -> Any:
    """Return what PPO's training step hands over, or None if the batch was skipped."""
    if not outputs:
        return None
    return outputs["step"]
