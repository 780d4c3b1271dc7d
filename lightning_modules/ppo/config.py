"""PPO's settings and their checks."""

from dataclasses import dataclass
from typing import Any, Literal

from lightning_modules.ppo.losses import Normalizer


@dataclass(frozen=True)
class PPOConfig:
    """Settings of PPO's loop.

    Defaults follow Huang et al. 2024 ("N+ details") and TRL 0.11 where they agree.

    Args:
        samples: Rollouts per prompt; RLOO and GRPO need 2 or more.
        max_new_tokens: Longest sampled response, in tokens, EOS included.
        temperature: Divides the logits in rollout, reference and update alike.
        kl_coef: Weight beta of the KL (its start value if adaptive).
        kl_target: Sequence KL in nats that an adaptive beta aims at; None keeps beta fixed.
        kl_horizon: Number of rollouts over which an adaptive beta may change by a fifth.
        kl_estimator: Estimate of the KL at each token (Schulman 2020). In the reward k1 and k3 are
            unbiased, and k2 is not.
        kl_in_loss: Add beta times the KL to the loss instead of subtracting it from the reward.
            Only k2 is accepted there, because only k2 has the gradient of the KL.
        epochs: Passes over each batch of rollouts.
        minibatch_size: Rollouts in one optimizer step, on each rank.
        microbatch_size: Rollouts in one forward and backward pass; None is a whole minibatch. It
            bounds the memory and changes no result.
        objective: ``ppo``, ``gspo`` (one ratio for a response; its clip is about 3e-4) or ``cispo``
            (clips the weight, not the objective); see :func:`~.losses.policy_loss`.
        normalizer: What the loss of a minibatch is divided by: ``tokens`` (DAPO), ``sequences``
            (GRPO, GSPO) or ``max_tokens`` (Dr. GRPO); see :func:`~.losses.token_weights`.
        clip: The ratio is clipped to [1 - clip, 1 + clip].
        clip_high: Upper bound in place of ``clip`` (DAPO's clip-higher); None is ``clip``.
        dual_clip: Bounds the loss of negative advantages at this ratio, above 1; None does not.
        value_clip: Largest change of a value in one batch before its gradient is cut off.
        value_weight: Weight of the value loss.
        normalize_scores: Shift and scale scores by the mean and standard deviation of all so far.
        unfinished_penalty: Subtracted from the score of a summary that ends without EOS.
        max_grad_norm: Largest norm of the gradient of all trained weights together.

    Raises:
        ValueError: If values are out of range, with all problems in one message.
    """

    samples: int = 1
    max_new_tokens: int = 100
    temperature: float = 1.0
    kl_coef: float = 0.05
    kl_target: float | None = None
    kl_horizon: float = 10_000.0
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"
    kl_in_loss: bool = False
    epochs: int = 4
    minibatch_size: int = 4
    microbatch_size: int | None = None
    objective: Literal["ppo", "gspo", "cispo"] = "ppo"
    normalizer: Normalizer = "tokens"
    clip: float = 0.2
    clip_high: float | None = None
    dual_clip: float | None = None
    value_clip: float = 0.2
    value_weight: float = 0.1
    normalize_scores: bool = False
    unfinished_penalty: float = 0.0
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        above_zero = (
            "samples", "max_new_tokens", "temperature", "kl_target", "kl_horizon", "epochs",
            "minibatch_size", "microbatch_size", "clip", "clip_high", "value_clip",
            "max_grad_norm",
        )  # fmt: skip
        problems = [
            f"{name} must be above 0, got {getattr(self, name)}"
            for name in above_zero
            if getattr(self, name) is not None and not getattr(self, name) > 0
        ]
        problems += [
            f"{name} must be 0 or more, got {getattr(self, name)}"
            for name in ("kl_coef", "value_weight", "unfinished_penalty")
            if not getattr(self, name) >= 0
        ]
        if self.kl_in_loss and self.kl_estimator != "k2":
            problems.append(
                f"kl_in_loss needs kl_estimator k2, not {self.kl_estimator}: as a loss k2 has the "
                "KL's gradient, k1 has none on average and k3 that of another divergence"
            )
        if self.dual_clip is not None and (self.dual_clip <= 1 or self.objective == "cispo"):
            problems.append(
                f"dual_clip must be above 1, got {self.dual_clip}, and has no effect with cispo"
            )
        if self.kl_target is not None and self.kl_coef == 0:
            problems.append(
                "kl_target changes nothing with kl_coef 0: an adaptive beta is a factor"
            )
        if problems:
            raise ValueError("ppo: " + "; ".join(problems))


def find_trainer_problems(trainer: Any) -> list[str | None]:
    """List settings of the Trainer that do not work with PPO's own optimizer steps."""
    problems: list[str | None] = []
    if str(trainer.precision) in ("16", "16-mixed"):
        problems.append(
            f"trainer.precision: PPO clips its gradients itself, but {trainer.precision} scales "
            "them; use bf16-mixed or 32-true"
        )
    if trainer.max_steps not in (-1, None):
        problems.append(
            "trainer.max_steps counts PPO's optimizer steps, many for each batch of rollouts; "
            "set trainer.max_epochs and trainer.limit_train_batches, which count batches"
        )
    if trainer.gradient_clip_val is not None or trainer.accumulate_grad_batches != 1:
        problems.append(
            "PPO takes its optimizer steps itself: in place of trainer.gradient_clip_val and "
            "trainer.accumulate_grad_batches set model.ppo.max_grad_norm and microbatch_size"
        )
    return problems
