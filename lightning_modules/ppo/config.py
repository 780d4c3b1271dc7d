"""PPO's settings, checked together when they are made."""

from dataclasses import dataclass
from typing import Literal

from lightning_modules.ppo.rewards import ScoreShaping


@dataclass(frozen=True)
class PPOConfig:
    """Settings of the loop; optimizer, policy, rewards and advantages are the module's.

    Defaults follow Huang et al. 2024 ("N+ details") and TRL 0.11 where they agree.

    Args:
        samples: Rollouts to a prompt; RLOO and GRPO need 2 or more.
        max_new_tokens: Longest sampled response, in tokens, EOS included.
        temperature: Divides the logits in rollout, reference and update alike.
        kl_coef: Weight beta of the KL (its start value if adaptive).
        kl_target: Sequence KL in nats that an adaptive beta is led to; None keeps beta fixed.
        kl_horizon: Number of rollouts over which an adaptive beta may move by a fifth of itself.
        kl_estimator: Estimate of the KL at each token (Schulman 2020). In the reward k1 and k3 are
            unbiased, and k2 is not.
        kl_in_loss: Make beta times the KL a term of the loss instead of the reward. Only k2 has
            the KL's gradient there; the others are refused.
        epochs: Passes over each batch of rollouts.
        minibatch_size: Rollouts in one optimizer step, on each rank.
        microbatch_size: Rollouts in one forward and backward pass; None takes whole minibatches.
            It bounds the memory and changes no result.
        clip: Half-width of the trust interval of the ratio.
        value_clip: Furthest that a value may move in one batch without losing its gradient.
        value_weight: Weight of the value loss beside the policy loss.
        whiten_rewards: Scale the rewards to variance 1 (the mean stays).
        normalise_scores: Shift and scale scores by the mean and standard deviation of all so far.
        score_scale: Factor of the scores, after normalisation.
        score_clip: Largest size of a score, after scaling; None is no limit.
        unfinished_penalty: Subtracted from the score of a summary that ends without EOS.
        unfinished_replaces: That score becomes ``-unfinished_penalty`` instead.
        length_penalty: Subtracted from the score for each token beyond ``length_free``.
        length_free: Tokens of a summary that cost nothing.
        max_grad_norm: Largest norm of the gradient of all trained weights together.
        ratio_guard: A minibatch whose mean ratio passes this is skipped, and counted.
        stop_kl: End the epochs over a batch after one in which KL(old, new) a token, in nats,
            passed this on the mean; None makes all epochs.

    Raises:
        ValueError: If values are out of range; all of them in one message.
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
    clip: float = 0.2
    value_clip: float = 0.2
    value_weight: float = 0.1
    whiten_rewards: bool = False
    normalise_scores: bool = False
    score_scale: float = 1.0
    score_clip: float | None = None
    unfinished_penalty: float | None = None
    unfinished_replaces: bool = False
    length_penalty: float = 0.0
    length_free: int = 0
    max_grad_norm: float = 1.0
    ratio_guard: float = 10.0
    stop_kl: float | None = None

    def __post_init__(self) -> None:
        above_zero = (
            "samples", "max_new_tokens", "temperature", "kl_target", "kl_horizon", "epochs",
            "minibatch_size", "microbatch_size", "clip", "value_clip", "score_scale", "score_clip",
            "max_grad_norm", "stop_kl",
        )  # fmt: skip
        problems = [
            f"{name} must be above 0, got {getattr(self, name)}"
            for name in above_zero
            if getattr(self, name) is not None and not getattr(self, name) > 0
        ]
        not_below = (
            "kl_coef", "value_weight", "length_penalty", "length_free", "unfinished_penalty",
        )  # fmt: skip
        problems += [
            f"{name} must be 0 or more, got {getattr(self, name)}"
            for name in not_below
            if getattr(self, name) is not None and not getattr(self, name) >= 0
        ]
        if not self.ratio_guard > 1:
            problems.append(f"ratio_guard must be above 1, got {self.ratio_guard}")
        if self.kl_estimator not in ("k1", "k2", "k3"):
            problems.append(f"kl_estimator must be k1, k2 or k3, got {self.kl_estimator!r}")
        elif self.kl_in_loss and self.kl_estimator != "k2":
            problems.append(
                f"kl_in_loss needs kl_estimator k2, not {self.kl_estimator}: as a loss k2 has the "
                "KL's gradient, k1 has none on average and k3 that of another divergence"
            )
        if self.kl_target is not None and self.kl_coef == 0:
            problems.append(
                "kl_target changes nothing with kl_coef 0: an adaptive beta is a factor"
            )
        if self.unfinished_replaces and self.unfinished_penalty is None:
            problems.append("unfinished_replaces changes nothing without unfinished_penalty")
        if self.length_free and not self.length_penalty:
            problems.append("length_free changes nothing without length_penalty")
        if problems:
            raise ValueError("ppo: " + "; ".join(problems))

    def score_shaping(self) -> ScoreShaping:
        """Give what is done to a score before it becomes a reward."""
        return ScoreShaping(
            self.normalise_scores, self.score_scale, self.score_clip, self.unfinished_penalty,
            self.unfinished_replaces, self.length_penalty, self.length_free,
        )  # fmt: skip
