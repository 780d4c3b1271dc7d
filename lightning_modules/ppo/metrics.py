"""PPO's metrics, by the names under which they are logged.

All but times and throughput are means over the rows, or the tokens, of all ranks.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from lightning_modules.ppo.advantages import Credit
from lightning_modules.ppo.kl import k1, k3, per_sequence
from lightning_modules.ppo.losses import explained_variance
from lightning_modules.ppo.rollout import Rollout
from lightning_modules.ppo.update import Sums

SumOverRanks = Callable[[Tensor], Tensor]


class Part(NamedTuple):
    """This rank's part of a mean: sum and number of its values."""

    total: Shaped[Tensor, ""]
    number: Shaped[Tensor, ""]


def over_rows(values: Shaped[Tensor, " B"]) -> Part:
    """Prepare a mean over rows."""
    return Part(values.sum(), values.new_tensor(len(values)))


def over_tokens(values: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Part:
    """Prepare a mean over real tokens."""
    return Part((values * mask).sum(), mask.sum())


def unite(parts: Mapping[str, Part], sum_over_ranks: SumOverRanks) -> dict[str, Tensor]:
    """Compute means over all ranks with one communication."""
    table = torch.stack([torch.stack([each.double() for each in part]) for part in parts.values()])
    totals, counts = sum_over_ranks(table).unbind(dim=1)
    return dict(zip(parts, (totals / counts).float(), strict=True))


def objective(
    rollout: Rollout,
    scores: Float[Tensor, " B"],
    shaped: Float[Tensor, " B"],
    beta: float,
    terms: Mapping[str, Float[Tensor, " B"]] | None = None,
    sum_over_ranks: SumOverRanks = lambda t: t,
) -> dict[str, Tensor | float]:
    """Compute rewards, KL, entropy and lengths as means over the batch.

    kl and kl_k3 are per sequence and entropy is per token, in nats. score is the reward after
    normalization, clipping and penalties; rlhf_reward is score minus beta times the sequence KL.

    Args:
        rollout: B responses.
        scores: Weighted sum of the reward's terms.
        shaped: The scores after normalization, clipping and penalties.
        beta: Weight of the KL.
        terms: The separate terms.
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
    """Average advantages (before whitening) and returns, and rate the value head.

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
    """Divide the sums of a batch's updates by their tokens."""
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
    """Report ratio and approximate KL of a batch's first minibatch, before its step.

    The policy has not changed since it sampled, so a ratio other than 1 means that two passes over
    the same tokens differ. The mean ratio alone does not show this, because over samples it is 1 on
    average for any policy; approxkl cannot cancel out.
    """
    return {
        "ppo/policy/first_ratio": sums.ratio / sums.tokens,
        "ppo/policy/first_approxkl": sums.approx_kl / sums.tokens,
    }


def speed(rollout: Rollout, times: list[float]) -> dict[str, float]:
    """Report the seconds of each phase, and rollouts and response tokens per second.

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
