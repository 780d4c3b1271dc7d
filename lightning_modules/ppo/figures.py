"""The numbers that tell how PPO is doing, by the names under which they are logged."""

from torch import Tensor

from lightning_modules.ppo.advantages import Credit
from lightning_modules.ppo.kl import k1, k3, per_sequence
from lightning_modules.ppo.losses import explained_variance
from lightning_modules.ppo.rollout import Rollout
from lightning_modules.ppo.update import Sums


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Average [B, T] over the real tokens: a scalar."""
    return (values * mask).sum() / mask.sum()


def objective(
    rollout: Rollout, scores: Tensor, shaped: Tensor, beta: float
) -> dict[str, Tensor | float]:
    """Give what PPO is after, and the shape of its rollouts: means over the batch.

    kl and kl_k3 are per sequence, nats; entropy is per token, nats; score is what was
    made of the reward (normalised, clipped, less penalties), and rlhf_reward is that less beta
    times the sequence KL.

    Args:
        rollout: B responses.
        scores: Weighted sum of the reward's terms, [B].
        shaped: What was made of them, [B].
        beta: Weight of the KL.
    """
    logprobs, reference, mask = rollout.logprobs, rollout.ref_logprobs, rollout.mask
    kl = per_sequence(k1(logprobs, reference), mask).mean()
    score = shaped.mean()
    return {
        "objective/reward": scores.mean(),
        "objective/score": score,
        "objective/kl": kl,
        "objective/kl_k3": per_sequence(k3(logprobs, reference), mask).mean(),
        "objective/entropy": masked_mean(rollout.entropy, mask),
        "objective/kl_coef": beta,
        "objective/rlhf_reward": score - beta * kl,
        "rollout/length": mask.sum(dim=1).float().mean(),
        "rollout/eos_rate": rollout.finished.float().mean(),
    }


def estimates(rollout: Rollout, credit: Credit) -> dict[str, Tensor]:
    """Give means of advantages (before whitening) and returns, and how the value head fits.

    Args:
        rollout: B responses of up to T tokens.
        credit: Their advantages and, with a value head, returns.
    """
    found = {"ppo/advantages/mean": masked_mean(credit.advantages, rollout.mask)}
    if credit.returns is not None:
        found["ppo/returns/mean"] = masked_mean(credit.returns, rollout.mask)
        found["ppo/val/explained_variance"] = explained_variance(
            rollout.values, credit.returns, rollout.mask
        )
    return found


def losses(sums: Sums) -> dict[str, Tensor]:
    """Give the means over tokens of what the updates of a batch added up."""
    return {
        f"ppo/{name}": value / sums.tokens
        for name, value in (
            ("policy/loss", sums.loss),
            ("policy/ratio", sums.ratio),
            ("policy/clipfrac", sums.clipped),
            ("policy/approxkl", sums.approx_kl),
            ("policy/kl_loss", sums.kl_loss),
            ("val/loss", sums.value_loss),
        )
    }


def start(sums: Sums) -> dict[str, Tensor]:
    """Give what the first minibatch of a batch found, before its step.

    The policy is the one that sampled then: a ratio that is not 1 means that two passes over the
    same tokens differ. The mean ratio alone would not tell, for over samples it is 1 on average
    whatever the policy; approxkl has no such cancellation.
    """
    return {
        "ppo/policy/first_ratio": sums.ratio / sums.tokens,
        "ppo/policy/first_approxkl": sums.approx_kl / sums.tokens,
    }


def speed(rollout: Rollout, times: list[float]) -> dict[str, float]:
    """Give the seconds of each phase of a step, and rollouts and response tokens a second.

    Args:
        rollout: B responses, of this rank.
        times: Clock readings before the rollout, after it, after scoring, after the update.
    """
    start, rolled_out, scored, end = times
    return {
        "time/rollout": rolled_out - start,
        "time/score": scored - rolled_out,
        "time/update": end - scored,
        "perf/samples_per_s": len(rollout.responses) / (end - start),
        "perf/tokens_per_s": float(rollout.mask.sum()) / (end - start),
    }
