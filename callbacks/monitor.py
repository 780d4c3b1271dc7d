"""Watch the health of a PPO run: KL, entropy, and a reward that is being gamed."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn

from callbacks.kl import Moments, ppo_step
from common.run_folder import RunFolder
from lightning_modules.ppo.kl import k1, per_sequence

log = logging.getLogger(__name__)

Condition = Literal["kl", "entropy", "hacking"]


@dataclass
class MonitorState:
    """What a monitor has seen; a checkpoint holds it.

    Attributes:
        active: Conditions that hold now.
        warnings: What was reported, as in summary.json.
        first_entropy: Entropy of the first batch.
        first_metrics: The independent metrics of the first validation.
        start: Count, sum and sum of squares of the rewards in the first window.
        recent: Mean rewards of the last window's batches.
        batches: Batches so far.
    """

    active: list[str] = field(default_factory=list)
    warnings: list[dict[str, Any]] = field(default_factory=list)
    first_entropy: float | None = None
    first_metrics: dict[str, float] = field(default_factory=dict)
    start: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    recent: list[float] = field(default_factory=list)
    batches: int = 0


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
        self._state = MonitorState()
        problems = [
            f"{name} must be above 0, got {value}"
            for name in ("kl_limit", "entropy_floor", "reward_rise", "window")
            if (value := getattr(self, name)) is not None and not value > 0
        ]
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
        rollout, state = step.rollout, self._state
        logratios = k1(rollout.logprobs, rollout.ref_logprobs)
        kl = Moments.of(per_sequence(logratios, rollout.mask), trainer).mean
        self._report(
            trainer, "kl", self.kl_limit is not None and kl > self.kl_limit,
            f"the KL of {kl:.2f} nats per sequence is above the limit of {self.kl_limit}: raise "
            "model.ppo.kl_coef, set model.ppo.kl_target, or lower the learning rate",
        )  # fmt: skip
        entropy = Moments.of(rollout.entropy[rollout.mask], trainer).mean
        if state.first_entropy is None:
            state.first_entropy = entropy
        self._report(
            trainer, "entropy", entropy < state.first_entropy * (self.entropy_floor or 0.0),
            f"the entropy of {entropy:.3g} nats per token is below {self.entropy_floor} of the "
            f"first batch's {state.first_entropy:.3g}: raise model.ppo.kl_coef or lower the "
            "learning rate",
        )  # fmt: skip
        rewards = Moments.of(step.scores, trainer)
        if state.batches < self.window:
            state.start = list(Moments(*state.start).add(rewards))
        state.batches += 1
        state.recent = [*state.recent, rewards.mean][-self.window :]

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
            known = ", ".join(sorted(name for name in logged if name.startswith("val/")))
            raise ValueError(
                f"monitor.falls names {', '.join(missing)}, which the validation did not log; it "
                f"logged: {known}"
            )
        now = {name: float(logged[name]) for name in self.falls}
        first = self._state.first_metrics = now | self._state.first_metrics
        if trainer.state.fn != TrainerFn.FITTING:
            return
        fallen = [
            f"{name} fell from {first[name]:.4f} to {now[name]:.4f}"
            for name, limit in self.falls.items()
            if not now[name] >= first[name] - limit  # also if it is NaN
        ]
        recent, start = self._state.recent, Moments(*self._state.start)
        rise = 0.0
        if recent:  # in standard deviations of the first rollouts
            rise = (sum(recent) / len(recent) - start.mean) / (start.std or 1.0)
        self._report(
            trainer, "hacking", rise > self.reward_rise and bool(fallen),
            f"the reward rose by {rise:.2f} standard deviations while {', '.join(fallen)}: the "
            "policy optimizes the reward and not the task; raise model.ppo.kl_coef, or add the "
            "metric to the reward (model.extra_rewards)",
        )  # fmt: skip

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record the warnings."""
        if trainer.is_global_zero:
            RunFolder(trainer.default_root_dir).update_summary(monitor=self._state.warnings)

    def _report(self, trainer: L.Trainer, condition: Condition, holds: bool, what: str) -> None:
        """Warn, or end the fit, if a condition begins to hold."""
        active = self._state.active
        if holds == (condition in active):
            return
        if not holds:
            active.remove(condition)
            return
        active.append(condition)
        step, end = trainer.global_step, ""
        self._state.warnings.append({"condition": condition, "step": step, "message": what})
        if condition in self.stop_on:
            trainer.should_stop, end = True, "; the fit ends here"
        if trainer.is_global_zero:
            log.warning("%s, step %d: %s%s", condition, step, what, end)

    def state_dict(self) -> dict[str, Any]:
        """Return what the conditions are compared with, and what was reported."""
        return asdict(self._state)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore it."""
        self._state = MonitorState(**state_dict)
