"""From one score a summary to a reward for each of its tokens."""

import torch
from torch import Tensor


def shape_rewards(scores: Tensor, kl: Tensor, mask: Tensor, beta: float) -> Tensor:
    """Give each token its KL penalty, and the last one the score on top.

    r_t = -beta d_t + [t = last] score, where the last token is EOS if there is one (Ziegler et al.
    2019, equation 2, spread over the tokens as in Ouyang et al. 2022).

    Args:
        scores: What the reward model says of each summary, [B].
        kl: d_t = log pi(y_t) - log pi_ref(y_t), [B, T].
        mask: True at y1..EOS, [B, T].
        beta: Weight of the KL.

    Returns:
        Rewards [B, T], 0 where the mask is False.
    """
    rewards = -beta * kl * mask
    last = mask.sum(dim=1) - 1
    rows = torch.arange(len(scores), device=scores.device)
    rewards[rows, last] += scores.to(rewards.dtype)
    return rewards


def penalise_unfinished(scores: Tensor, finished: Tensor, penalty: float | None) -> Tensor:
    """Subtract ``penalty`` from the score of every summary that ended without EOS (as TRL does).

    Args:
        scores: [B].
        finished: Whether the summary ended with EOS, [B].
        penalty: Amount; None leaves the scores as they are.
    """
    if penalty is None:
        return scores
    return torch.where(finished, scores, scores - penalty)
