"""PPO's settings, checked together when they are made."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PPOConfig:
    """Settings of the PPO loop; the optimizer and the adapter are the module's.

    Defaults follow Huang et al. 2024 ("N+ details") and TRL 0.11 where they agree.

    Args:
        max_new_tokens: Longest sampled response, in tokens, EOS included.
        temperature: Divides the logits in rollout, reference and update alike.
        kl_coef: Weight beta of the per-token KL in the reward (its start value if adaptive).
        kl_target: Sequence KL in nats that an adaptive beta is led to; None keeps beta fixed.
        kl_horizon: Number of rollouts over which an adaptive beta may move by a fifth of itself.
        epochs: Passes over each batch of rollouts.
        minibatch_size: Rollouts in one optimizer step, on each rank.
        gamma: Discount.
        lam: Lambda of the advantage estimate.
        clip: Half-width of the trust interval of the ratio.
        value_clip: Furthest that a value may move in one batch without losing its gradient.
        value_weight: Weight of the value loss beside the policy loss.
        whiten_rewards: Scale the rewards to variance 1 (the mean stays).
        unfinished_penalty: Subtracted from the score of a summary that ends without EOS.
        max_grad_norm: Largest norm of the gradient of all trained weights together.
        ratio_guard: A minibatch whose mean ratio passes this is skipped, and counted.

    Raises:
        ValueError: If values are out of range; all of them in one message.
    """

    max_new_tokens: int = 100
    temperature: float = 1.0
    kl_coef: float = 0.05
    kl_target: float | None = None
    kl_horizon: float = 10_000.0
    epochs: int = 4
    minibatch_size: int = 4
    gamma: float = 1.0
    lam: float = 0.95
    clip: float = 0.2
    value_clip: float = 0.2
    value_weight: float = 0.1
    whiten_rewards: bool = False
    unfinished_penalty: float | None = None
    max_grad_norm: float = 1.0
    ratio_guard: float = 10.0

    def __post_init__(self) -> None:
        above_zero = (
            "max_new_tokens", "temperature", "kl_horizon", "epochs", "minibatch_size", "clip",
            "value_clip", "max_grad_norm",
        )  # fmt: skip
        problems = [
            f"{name} must be above 0, got {getattr(self, name)}"
            for name in above_zero
            if not getattr(self, name) > 0
        ]
        problems += [
            f"{name} must be 0 or more, got {getattr(self, name)}"
            for name in ("kl_coef", "value_weight")
            if not getattr(self, name) >= 0
        ]
        problems += [
            f"{name} must be in [0, 1], got {getattr(self, name)}"
            for name in ("gamma", "lam")
            if not 0 <= getattr(self, name) <= 1
        ]
        if self.kl_target is not None and not self.kl_target > 0:
            problems.append(f"kl_target must be above 0 or null, got {self.kl_target}")
        if not self.ratio_guard > 1:
            problems.append(f"ratio_guard must be above 1, got {self.ratio_guard}")
        if problems:
            raise ValueError("ppo: " + "; ".join(problems))
