"""Watch how far a PPO policy has moved from its reference."""

import logging
from typing import Any, Literal

import lightning as L
from lightning.pytorch.callbacks import Callback

log = logging.getLogger(__name__)


class KLCallback(Callback):
    """Log the spread of the sequence KL over a batch, and warn or stop when its mean is too high.

    ``objective/kl`` is the mean that the module logs; ``objective/kl_max`` and ``objective/kl_std``
    of this callback tell a policy that has moved a little everywhere from one that has left the
    reference altogether on a few prompts. A KL that keeps growing is how reward hacking begins.

    Args:
        limit: Mean sequence KL, nats, above which to act; None only logs.
        action: What to do above the limit: ``warn`` (once for each time it is passed) or ``stop``
            (end the fit after this batch, checkpoint and export as usual).

    Raises:
        ValueError: If the limit is not positive.
    """

    def __init__(
        self, limit: float | None = None, action: Literal["warn", "stop"] = "warn"
    ) -> None:
        if limit is not None and not limit > 0:
            raise ValueError(f"KLCallback: limit must be above 0 nats or null, got {limit}")
        self.limit = limit
        self.action = action
        self._above = False

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Log this batch's spread and act on its mean."""
        kl = outputs["kl"]
        mean = trainer.strategy.reduce(kl.mean(), reduce_op="mean")
        pl_module.log("objective/kl_std", kl.std(unbiased=False), on_step=True, sync_dist=True)
        pl_module.log("objective/kl_max", kl.max(), on_step=True, sync_dist=True, reduce_fx="max")
        above = self.limit is not None and float(mean) > self.limit
        if above and not self._above:
            log.warning(
                "KL %.2f nats a sequence has passed the limit of %.2f at step %d%s",
                mean, self.limit, trainer.global_step,
                "; stopping" if self.action == "stop" else "; raise ppo.kl_coef or lower the rate",
            )  # fmt: skip
            trainer.should_stop = trainer.should_stop or self.action == "stop"
        self._above = above
