"""The KL divergence between the policy and its reference, from the rollouts of PPO."""

from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from lightning_modules.ppo.kl import k1, k3, per_sequence


class KLCallback(Callback):
    """Log how the KL of the rollouts is spread over the batch.

    PPOPolicy logs the batch means ``objective/kl`` (k1) and ``objective/kl_k3``, in nats per
    sequence; PPOMonitor compares the mean with a limit. This callback adds, over all ranks,

    - ``objective/kl_std`` and ``objective/kl_max`` of k1: a high maximum at a low mean shows that
      the policy has left the reference on a few prompts only;
    - ``objective/kl_k3_max``: k3 has no negative terms, so large values do not cancel.

    Schulman 2020, "Approximating KL Divergence": k1 = log(pi / pi_ref), k3 = r - 1 - log r with
    r = pi_ref / pi, both summed over the tokens of a sequence.
    """

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *args: Any
    ) -> None:
        """Log the spread of this batch's KL."""
        step = ppo_step(outputs)
        if step is None:
            return
        rollout = step.rollout
        logratios = rollout.logprobs, rollout.ref_logprobs
        kl = per_sequence(k1(*logratios), rollout.mask)
        pl_module.log("objective/kl_std", Moments.of(kl, trainer).std)
        for name, values in (
            ("objective/kl_max", kl),
            ("objective/kl_k3_max", per_sequence(k3(*logratios), rollout.mask)),
        ):
            pl_module.log(name, values.max(), sync_dist=True, reduce_fx="max")


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
    """Return the PPOStep of a training step, or None if the batch was skipped."""
    return outputs["step"] if outputs else None
