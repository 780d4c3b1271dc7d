"""Watch a PPO run for what goes wrong without an error: drift, collapse, broken passes, hacking."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from callbacks.falls import Falls, is_validation_of_fit
from common.run_folder import RunFolder
from lightning_modules import PPOPolicy
from lightning_modules.ppo.invariants import BF16, FP32, count_mask_errors
from lightning_modules.ppo.rewards import RunningMoments

log = logging.getLogger(__name__)

Condition = Literal["kl", "entropy", "gate", "hacking"]


class PPOWatch(Callback):
    """Warn, or end the fit, when a PPO run goes wrong; each condition speaks once a crossing.

    - ``kl``: the mean sequence KL of a batch has passed a limit.
    - ``entropy``: the mean entropy of the sampled tokens has fallen below a share of the first
      batch's. The policy says the same thing always, and can no longer learn.
    - ``gate``: what the gate measured before the first update no longer holds. The first minibatch
      of a batch is scored by the policy that sampled it, so its ratios are 1 and its log-ratios 0,
      to rounding; and the mask is y1..EOS.
    - ``hacking``: the reward has risen while a metric of the validation that is not the reward has
      fallen (Gao et al. 2023, "Scaling Laws for Reward Model Overoptimization"). The fall is
      counted from the first validation, which :class:`ValidateAtStart` makes one of the start.

    ``objective/kl_std`` and ``objective/kl_max`` are logged beside the module's ``objective/kl``:
    they tell a policy that has moved a little everywhere from one that has left the reference on a
    few prompts. All figures are over all ranks, so every rank decides alike. All that was said is
    in summary.json under ``watch``, an empty list where nothing was: condition, step (of
    metrics.csv: batches of rollouts from 0) and message.

    Args:
        kl_limit: Mean sequence KL (k1), nats, above which to act; None only logs.
        entropy_floor: Share of the first batch's entropy below which to act; None never does.
        ratio_tolerance: Largest root mean square of the log-ratio in the first minibatch. None
            takes the gate's ``log_ratio`` at the run's precision.
        reward_rise: How far the mean reward has to rise for ``hacking``, in standard deviations of
            the reward of single rollouts at the start.
        falls: For each metric of the validation, higher being better, how far it may fall.
        window: Batches over which the reward is averaged, at the start and now.
        stop_on: Conditions that end the fit after this batch, checkpoint and export as usual; the
            others warn.

    Raises:
        ValueError: If a setting is out of range.
    """

    def __init__(
        self,
        kl_limit: float | None = 20.0,
        entropy_floor: float | None = 0.2,
        ratio_tolerance: float | None = None,
        reward_rise: float = 0.5,
        falls: Mapping[str, float] | None = None,
        window: int = 4,
        stop_on: Sequence[Condition] = (),
    ) -> None:
        self.kl_limit = kl_limit
        self.entropy_floor = entropy_floor
        self.ratio_tolerance = ratio_tolerance
        self.reward_rise = reward_rise
        self._falls = Falls("PPOWatch", {"val/rouge1": 0.03} if falls is None else falls)
        self.window = window
        self.stop_on = tuple(stop_on)
        self._check()
        self._crossed: set[str] = set()
        self._first_entropy: float | None = None
        self._start = RunningMoments()
        self._recent: list[float] = []
        self._batches = 0
        self._said: list[dict[str, Any]] = []

    def _check(self) -> None:
        above_zero = {"kl_limit", "entropy_floor", "ratio_tolerance", "reward_rise", "window"}
        problems = [
            f"{name} must be above 0, got {getattr(self, name)}"
            for name in sorted(above_zero)
            if getattr(self, name) is not None and not getattr(self, name) > 0
        ]
        if unknown := set(self.stop_on) - set(get_args(Condition)):
            problems.append(f"stop_on takes {', '.join(get_args(Condition))}, not {unknown}")
        if problems:
            raise ValueError("PPOWatch: " + "; ".join(problems))

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse a module that is not trained by PPO."""
        if not isinstance(pl_module, PPOPolicy):
            raise ValueError(
                f"PPOWatch: {type(pl_module).__name__} is not trained by PPO; drop the callback"
            )

    # After each batch ---------------------------------------------------------------------------

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at this batch, unless it was skipped."""
        if not outputs:
            return
        self._watch_kl(trainer, pl_module, outputs["kl"])
        self._watch_entropy(trainer, pl_module, outputs["experience"].rollout)
        self._watch_gate(trainer, pl_module, outputs)
        self._follow_reward(pl_module, outputs["score"])

    def _watch_kl(self, trainer: L.Trainer, pl_module: Any, kl: Tensor) -> None:
        found = over_ranks(pl_module, kl)
        spread = (found.squares / found.count) ** 0.5
        pl_module.log("objective/kl_std", spread, on_step=True)
        pl_module.log("objective/kl_max", kl.max(), on_step=True, sync_dist=True, reduce_fx="max")
        self._report(
            trainer, "kl", self.kl_limit is not None and found.mean > self.kl_limit,
            f"KL {found.mean:.2f} nats a sequence has passed the limit of {self.kl_limit}: raise "
            "ppo.kl_coef, set ppo.kl_target, or lower the learning rate",
        )  # fmt: skip

    def _watch_entropy(self, trainer: L.Trainer, pl_module: Any, rollout: Any) -> None:
        entropy = over_ranks(pl_module, rollout.entropy[rollout.mask]).mean
        if self._first_entropy is None:
            self._first_entropy = entropy
        floor = self._first_entropy * (self.entropy_floor or 0.0)
        self._report(
            trainer, "entropy", entropy < floor,
            f"entropy {entropy:.3g} nats a token has fallen below {self.entropy_floor} of the "
            f"first batch's {self._first_entropy:.3g}: raise ppo.kl_coef or lower the rate",
        )  # fmt: skip

    def _watch_gate(self, trainer: L.Trainer, pl_module: Any, outputs: Any) -> None:
        figures, rollout = outputs["figures"], outputs["experience"].rollout
        limit = self.ratio_tolerance
        if limit is None:
            limit = (FP32 if pl_module.is_exact else BF16).log_ratio
        size = float(2 * figures["ppo/policy/first_approxkl"]) ** 0.5
        eos_id = pl_module.tokenizer.eos_token_id
        wrong = torch.tensor(
            count_mask_errors(rollout.responses, rollout.mask, eos_id), device=rollout.mask.device
        )
        errors = int(pl_module.sum_over_ranks(wrong))
        self._report(
            trainer, "gate", not size <= limit or errors > 0,
            f"before its first update of this batch the policy scored its own tokens with a mean "
            f"ratio of {float(figures['ppo/policy/first_ratio']):.6f} and log-ratios of "
            f"{size:.3g} (root mean square; {limit:g} is allowed), and {errors} tokens were masked "
            "wrongly: rollout and update are not the same function",
        )  # fmt: skip

    def _follow_reward(self, pl_module: Any, scores: Tensor) -> None:
        mean = over_ranks(pl_module, scores).mean
        if self._batches < self.window:
            self._start.update(scores, pl_module.sum_over_ranks)
        self._batches += 1
        self._recent = [*self._recent, mean][-self.window :]

    # After each validation ----------------------------------------------------------------------

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare what the reward does not see with the first validation.

        Raises:
            ValueError: If the validation did not log a metric that is to be watched.
        """
        if not is_validation_of_fit(trainer):
            return
        self._falls.look(trainer.callback_metrics)
        fallen, rise = self._falls.find_fallen(), self._reward_rise()
        self._report(
            trainer, "hacking", rise > self.reward_rise and bool(fallen),
            f"the reward has risen by {rise:.2f} standard deviations while {', '.join(fallen)}: "
            "the policy pleases its reward and not its task; raise ppo.kl_coef, or add the metric "
            "to the reward (model.extra_rewards)",
        )  # fmt: skip

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record what was said."""
        if trainer.is_global_zero:
            RunFolder(trainer.default_root_dir).update_summary(watch=self._said)

    def _reward_rise(self) -> float:
        """Give the rise of the mean reward in standard deviations of the start's rollouts."""
        if not self._recent:
            return 0.0
        now = sum(self._recent) / len(self._recent)
        return (now - self._start.mean) / self._start.std

    # What it does -------------------------------------------------------------------------------

    def _report(self, trainer: L.Trainer, condition: Condition, crossed: bool, what: str) -> None:
        if crossed and condition not in self._crossed:
            stops = condition in self.stop_on
            policy: Any = trainer.lightning_module
            step = policy.batches_done - 1
            self._said.append({"condition": condition, "step": step, "message": what})
            if trainer.is_global_zero:
                end = "; stopping" if stops else ""
                log.warning("%s, batch %d: %s%s", condition, step, what, end)
            trainer.should_stop = trainer.should_stop or stops
        (self._crossed.add if crossed else self._crossed.discard)(condition)

    def state_dict(self) -> dict[str, Any]:
        """Give what the watch remembers."""
        start = self._start
        return {
            "crossed": sorted(self._crossed),
            "first_entropy": self._first_entropy,
            "start": [start.count, start.mean, start.squares],
            "recent": list(self._recent),
            "batches": self._batches,
            "first_validation": dict(self._falls.first),
            "said": list(self._said),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it up again."""
        self._crossed = set(state_dict["crossed"])
        self._first_entropy = state_dict["first_entropy"]
        self._start = RunningMoments(*state_dict["start"])
        self._recent = list(state_dict["recent"])
        self._batches = state_dict["batches"]
        self._falls.first = dict(state_dict["first_validation"])
        self._said = list(state_dict.get("said", []))


def over_ranks(pl_module: Any, values: Tensor) -> RunningMoments:
    """Give mean and spread of values [N] over all ranks."""
    moments = RunningMoments()
    moments.update(values, pl_module.sum_over_ranks)
    return moments
