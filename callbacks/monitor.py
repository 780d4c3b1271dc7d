"""Watch the health of a PPO run: KL, entropy, and a reward that is being gamed."""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn

from callbacks.kl import Moments, ppo_step
from common.run_folder import RunFolder
from lightning_modules.ppo.kl import k1, per_sequence

log = logging.getLogger(__name__)

Condition = Literal["kl", "entropy", "hacking"]


class PPOMonitor(Callback):
    """Warn, or end the fit, when a PPO run goes wrong; once each time a condition begins to hold.

    - ``kl``: the batch's mean sequence KL exceeds a limit.
    - ``entropy``: the mean entropy of the sampled tokens is below a share of the first batch's. The
      policy has collapsed onto a few outputs and can no longer explore.
    - ``hacking``: the reward has risen while an independent evaluator, a validation metric that is
      not the reward, has fallen (Gao et al. 2023, "Scaling Laws for Reward Model
      Overoptimization"). The fall is measured from the first validation; with
      ``validate_first: true`` that is the one before the first update.

    All figures are over all ranks, so every rank decides alike. The warnings are recorded in
    summary.json under ``monitor``: condition, optimizer step and message.

    Args:
        kl_limit: Mean sequence KL (k1), nats; None never warns.
        entropy_floor: Share of the first batch's entropy; None never warns.
        reward_rise: Rise of the mean reward for ``hacking``, in standard deviations of the reward
            of single rollouts at the start.
        falls: For each validation metric, higher being better, how far it may fall.
        window: Batches over which the reward is averaged, at the start and now.
        stop_on: Conditions that end the fit after the batch; the others warn.

    Raises:
        ValueError: If a setting is out of range.
    """

    def __init__(
        self,
        kl_limit: float | None = 20.0,
        entropy_floor: float | None = 0.2,
        reward_rise: float = 0.5,
        falls: Mapping[str, float] | None = None,
        window: int = 4,
        stop_on: Sequence[Condition] = (),
    ) -> None:
        self.kl_limit = kl_limit
        self.entropy_floor = entropy_floor
        self.reward_rise = reward_rise
        self.falls = {"val/rouge1": 0.03} if falls is None else dict(falls)
        self.window = window
        self.stop_on = tuple(stop_on)
        self._check()
        self._active: set[str] = set()
        self._warnings: list[dict[str, Any]] = []
        self._first_entropy: float | None = None
        self._first_metrics: dict[str, float] = {}
        self._start = Moments()
        self._recent: list[float] = []
        self._batches = 0

    def _check(self) -> None:
        problems = [
            f"{name} must be above 0, got {value}"
            for name in ("kl_limit", "entropy_floor", "reward_rise", "window")
            if (value := getattr(self, name)) is not None and not value > 0
        ]
        problems += [
            f"falls must be 0 or more, got {name} {limit}"
            for name, limit in self.falls.items()
            if not limit >= 0
        ]
        if unknown := set(self.stop_on) - set(get_args(Condition)):
            problems.append(f"stop_on takes {', '.join(get_args(Condition))}, not {unknown}")
        if problems:
            raise ValueError("monitor: " + "; ".join(problems))

    # After each batch ---------------------------------------------------------------------------

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *args: Any
    ) -> None:
        """Check KL and entropy of this batch, unless it was skipped, and follow the reward."""
        step = ppo_step(outputs)
        if step is None:
            return
        rollout = step.rollout
        kl = Moments.of(
            per_sequence(k1(rollout.logprobs, rollout.ref_logprobs), rollout.mask), trainer
        ).mean
        self._report(
            trainer, "kl", self.kl_limit is not None and kl > self.kl_limit,
            f"the KL of {kl:.2f} nats per sequence is above the limit of {self.kl_limit}: raise "
            "model.ppo.kl_coef, set model.ppo.kl_target, or lower the learning rate",
        )  # fmt: skip
        entropy = Moments.of(rollout.entropy[rollout.mask], trainer).mean
        if self._first_entropy is None:
            self._first_entropy = entropy
        self._report(
            trainer, "entropy", entropy < self._first_entropy * (self.entropy_floor or 0.0),
            f"the entropy of {entropy:.3g} nats per token is below {self.entropy_floor} of the "
            f"first batch's {self._first_entropy:.3g}: raise model.ppo.kl_coef or lower the "
            "learning rate",
        )  # fmt: skip
        rewards = Moments.of(step.scores, trainer)
        if self._batches < self.window:
            self._start = self._start.add(rewards)
        self._batches += 1
        self._recent = [*self._recent, rewards.mean][-self.window :]

    # After each validation ----------------------------------------------------------------------

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare the independent metrics with the first validation.

        Raises:
            ValueError: If the validation did not log one of them.
        """
        if trainer.sanity_checking:
            return
        logged = trainer.callback_metrics
        if missing := [name for name in self.falls if name not in logged]:
            known = ", ".join(sorted(name for name in logged if name.startswith("val/"))) or "none"
            raise ValueError(
                f"monitor.falls names {', '.join(missing)}, which the validation did not log; it "
                f"logged: {known}"
            )
        now = {name: float(logged[name]) for name in self.falls}
        self._first_metrics = self._first_metrics or now
        if trainer.state.fn != TrainerFn.FITTING:
            return
        fallen = [
            f"{name} fell from {first:.4f} to {now[name]:.4f}"
            for name, first in self._first_metrics.items()
            if not now.get(name, math.nan) >= first - self.falls.get(name, math.inf)
        ]
        rise = self._reward_rise()
        self._report(
            trainer, "hacking", rise > self.reward_rise and bool(fallen),
            f"the reward rose by {rise:.2f} standard deviations while {', '.join(fallen)}: the "
            "policy optimizes the reward and not the task; raise model.ppo.kl_coef, or add the "
            "metric to the reward (model.extra_rewards)",
        )  # fmt: skip

    def _reward_rise(self) -> float:
        """Return the rise of the mean reward, in standard deviations of the first rollouts."""
        if not self._recent:
            return 0.0
        now = sum(self._recent) / len(self._recent)
        return (now - self._start.mean) / (self._start.std or 1.0)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record the warnings."""
        if trainer.is_global_zero:
            RunFolder(trainer.default_root_dir).update_summary(monitor=self._warnings)

    def _report(self, trainer: L.Trainer, condition: Condition, holds: bool, what: str) -> None:
        if holds and condition not in self._active:
            stops = condition in self.stop_on
            step = trainer.global_step
            self._warnings.append({"condition": condition, "step": step, "message": what})
            if trainer.is_global_zero:
                end = "; the fit ends here" if stops else ""
                log.warning("%s, step %d: %s%s", condition, step, what, end)
            trainer.should_stop = trainer.should_stop or stops
        (self._active.add if holds else self._active.discard)(condition)

    def state_dict(self) -> dict[str, Any]:
        """Return what the conditions are compared with, and what was reported."""
        return {
            "active": sorted(self._active),
            "warnings": list(self._warnings),
            "first_entropy": self._first_entropy,
            "first_metrics": dict(self._first_metrics),
            "start": list(self._start),
            "recent": list(self._recent),
            "batches": self._batches,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore it."""
        self._active = set(state_dict["active"])
        self._warnings = list(state_dict["warnings"])
        self._first_entropy = state_dict["first_entropy"]
        self._first_metrics = dict(state_dict["first_metrics"])
        self._start = Moments(*state_dict["start"])
        self._recent = list(state_dict["recent"])
        self._batches = state_dict["batches"]
