"""The numbers that tell how PPO is doing, by the names under which they are logged.

All but times and speed are over the rows, or the tokens, of all ranks together.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_modules.ppo.advantages import Credit
from lightning_modules.ppo.kl import k1, k3, per_sequence
from lightning_modules.ppo.losses import explained_variance
from lightning_modules.ppo.rollout import Rollout
from lightning_modules.ppo.update import Sums

SumOverRanks = Callable[[Tensor], Tensor]


class Part(NamedTuple):
    """This rank's part of a mean: the sum of its values, and how many they are, scalars."""

    total: Tensor
    number: Tensor


def over_rows(values: Tensor) -> Part:
    """Average [B] over the rows."""
    return Part(values.sum(), values.new_tensor(len(values)))


def over_tokens(values: Tensor, mask: Tensor) -> Part:
    """Average [B, T] over the real tokens."""
    return Part((values * mask).sum(), mask.sum())


def unite(parts: Mapping[str, Part], sum_over_ranks: SumOverRanks) -> dict[str, Tensor]:
    """Give the means over all ranks, by one sum for all of them: scalars."""
    table = torch.stack([torch.stack([each.double() for each in part]) for part in parts.values()])
    totals, counts = sum_over_ranks(table).unbind(dim=1)
    return dict(zip(parts, (totals / counts).float(), strict=True))


def objective(
    rollout: Rollout,
    scores: Tensor,
    shaped: Tensor,
    beta: float,
    terms: Mapping[str, Tensor] | None = None,
    sum_over_ranks: SumOverRanks = lambda t: t,
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
        terms: The terms by themselves, [B] each.
        sum_over_ranks: Sums a tensor over the ranks.
    """
    logprobs, reference, mask = rollout.logprobs, rollout.ref_logprobs, rollout.mask
    rows = {
        "objective/reward": scores,
        "objective/score": shaped,
        "objective/kl": per_sequence(k1(logprobs, reference), mask),
        "objective/kl_k3": per_sequence(k3(logprobs, reference), mask),
        **{f"objective/rewards/{name}": values for name, values in (terms or {}).items()},
        "rollout/length": mask.sum(dim=1),
        "rollout/eos_rate": rollout.finished.float(),
    }
    parts = {name: over_rows(values) for name, values in rows.items()}
    parts["objective/entropy"] = over_tokens(rollout.entropy, mask)
    means = unite(parts, sum_over_ranks)
    rlhf_reward = means["objective/score"] - beta * means["objective/kl"]
    return {**means, "objective/kl_coef": beta, "objective/rlhf_reward": rlhf_reward}


def estimates(
    rollout: Rollout, credit: Credit, sum_over_ranks: SumOverRanks = lambda t: t
) -> dict[str, Tensor]:
    """Give means of advantages (before whitening) and returns, and how the value head fits.

    Args:
        rollout: B responses of up to T tokens.
        credit: Their advantages and, with a value head, returns.
        sum_over_ranks: Sums a tensor over the ranks.
    """
    mask = rollout.mask
    parts = {"ppo/advantages/mean": over_tokens(credit.advantages, mask)}
    if credit.returns is None:
        return unite(parts, sum_over_ranks)
    parts["ppo/returns/mean"] = over_tokens(credit.returns, mask)
    explained = explained_variance(rollout.values, credit.returns, mask, sum_over_ranks)
    return unite(parts, sum_over_ranks) | {"ppo/val/explained_variance": explained}


def total(steps: Sequence[Sums]) -> Sums:
    """Add up the sums of several optimizer steps."""
    return Sums(*torch.stack([torch.stack(list(each)) for each in steps]).sum(dim=0))


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
