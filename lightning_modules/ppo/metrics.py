"""PPO's metrics, by the names under which they are logged.

All but times and throughput are means over the rows, or the tokens, of all ranks.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_modules.ppo.advantages import Credit
from lightning_modules.ppo.kl import k1, k3, per_sequence
from lightning_modules.ppo.losses import explained_variance
from lightning_modules.ppo.rollout import Rollout
from lightning_modules.ppo.update import Sums

SumOverRanks = Callable[[Tensor], Tensor]


def rollout_metrics(
    rollout: Rollout,
    terms: Mapping[str, Float[Tensor, " B"]],
    scores: Float[Tensor, " B"],
    shaped: Float[Tensor, " B"],
    credit: Credit,
    beta: float,
    sum_over_ranks: SumOverRanks = lambda t: t,
) -> dict[str, Tensor | float]:
    """Compute rewards, KL, entropy, lengths, advantages and returns as means over the batch.

    kl and kl_k3 are per sequence and entropy is per token, in nats. score is the reward after
    normalization and penalties; rlhf_reward is score minus beta times the sequence KL.

    Args:
        rollout: B responses.
        terms: Scores of each reward term.
        scores: Weighted sum of the terms.
        shaped: The scores after normalization and penalties.
        credit: Advantages (before whitening) and, with a value head, returns.
        beta: Weight of the KL.
        sum_over_ranks: Sums a tensor over the ranks; the means need one communication.
    """
    logprobs, reference, mask = rollout.logprobs, rollout.ref_logprobs, rollout.mask
    rows = {
        "objective/reward": scores,
        "objective/score": shaped,
        "objective/kl": per_sequence(k1(logprobs, reference), mask),
        "objective/kl_k3": per_sequence(k3(logprobs, reference), mask),
        **{f"objective/rewards/{name}": values for name, values in terms.items()},
        "rollout/length": mask.sum(dim=1),
        "rollout/eos_rate": rollout.finished,
    }
    tokens = {"objective/entropy": rollout.entropy, "ppo/advantages/mean": credit.advantages}
    if credit.returns is not None:
        tokens["ppo/returns/mean"] = credit.returns
    sums = [values.double().sum() for values in rows.values()]
    sums += [(values.double() * mask).sum() for values in tokens.values()]
    counts = [mask.new_tensor(len(mask), dtype=torch.double)] * len(rows)
    counts += [mask.double().sum()] * len(tokens)
    totals = sum_over_ranks(torch.stack([torch.stack(sums), torch.stack(counts)]))
    means = (totals[0] / totals[1]).float()
    found: dict[str, Tensor | float] = dict(zip((*rows, *tokens), means, strict=True))
    found["objective/kl_coef"] = beta
    found["objective/rlhf_reward"] = found["objective/score"] - beta * found["objective/kl"]
    if credit.returns is not None:
        found["ppo/val/explained_variance"] = explained_variance(
            rollout.values, credit.returns, mask, sum_over_ranks
        )
    return found


def update_metrics(minibatches: Sequence[Sums]) -> dict[str, Tensor]:
    """Divide the sums of a batch's minibatches, over all ranks, by their tokens or weights."""
    total = Sums(*torch.stack([torch.stack(each) for each in minibatches]).sum(dim=0))
    means = Sums(*(each / total.tokens for each in total))
    losses = Sums(*(each / total.weight for each in total))
    return {
        "ppo/policy/loss": losses.loss,
        "ppo/policy/ratio": means.ratio,
        "ppo/policy/clipfrac": means.clipped,
        "ppo/policy/approxkl": means.approx_kl,
        "ppo/policy/kl_loss": losses.kl_loss,
        "ppo/val/loss": losses.value_loss,
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
