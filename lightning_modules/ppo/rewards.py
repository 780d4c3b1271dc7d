"""From the scores of a summary to a reward for each of its tokens."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def shape_rewards(
    scores: Float[Tensor, " B"],
    kl: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    beta: float,
) -> Float[Tensor, "B T"]:
    """Reward each token with its KL penalty, and the last token with the score as well.

    r_t = -beta d_t + [t = last] score, where the last token is EOS if there is one (Ziegler et al.
    2019, equation 2, spread over the tokens as in Ouyang et al. 2022).

    Args:
        scores: Score of each summary, [B].
        kl: d_t, an estimate of the KL at each token, [B, T].
        mask: True at y1..EOS, [B, T].
        beta: Weight of the KL; 0 where it is a term of the loss instead.

    Returns:
        Rewards [B, T], 0 where the mask is False.
    """
    rewards = -beta * kl * mask
    last = mask.sum(dim=1) - 1
    rows = torch.arange(len(scores), device=scores.device)
    rewards[rows, last] += scores.to(rewards.dtype)
    return rewards


@dataclass
class RunningMoments:
    """Mean and variance of all scores so far, over all batches and ranks.

    Chan et al. 1983, "Algorithms for Computing the Sample Variance", the pairwise update, in double
    precision.

    Args:
        count: Number of scores.
        mean: Their mean.
        squares: Sum of their squared distances from the mean.
    """

    count: float = 0.0
    mean: float = 0.0
    squares: float = 0.0

    def update(
        self, scores: Float[Tensor, " B"], sum_over_ranks: Callable[[Tensor], Tensor] = lambda t: t
    ) -> None:
        """Add a batch of scores."""
        scores = scores.double()
        sums = torch.stack([scores.new_tensor(float(len(scores))), scores.sum()])
        count, total = sum_over_ranks(sums).tolist()
        mean = total / count
        squares = float(sum_over_ranks((scores - mean).square().sum()))
        gap, both = mean - self.mean, self.count + count
        self.squares += squares + gap**2 * self.count * count / both
        self.mean += gap * count / both
        self.count = both

    @property
    def std(self) -> float:
        """Biased standard deviation of all scores so far; 1 if they are all equal."""
        variance = self.squares / self.count if self.count else 0.0
        return variance**0.5 if variance > 0 else 1.0


@dataclass
class ScoreShaping:
    """Normalize scores, then penalize summaries without EOS.

    Args:
        normalize: Subtract the running mean and divide by the running standard deviation.
        unfinished_penalty: Subtracted from the score of a summary without EOS. TRL does the same;
            the N+ details replace the score instead.
        moments: Of the scores so far.
    """

    normalize: bool = False
    unfinished_penalty: float = 0.0
    moments: RunningMoments = field(default_factory=RunningMoments)

    def __call__(
        self,
        scores: Float[Tensor, " B"],
        finished: Bool[Tensor, " B"],
        sum_over_ranks: Callable[[Tensor], Tensor] = lambda t: t,
    ) -> Float[Tensor, " B"]:
        """Shape the scores of summaries, some of them ``finished`` with EOS."""
        if self.normalize:
            self.moments.update(scores, sum_over_ranks)
            scores = (scores - self.moments.mean) / self.moments.std
        return torch.where(finished, scores, scores - self.unfinished_penalty)
