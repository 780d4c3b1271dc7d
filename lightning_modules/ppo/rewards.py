"""From the scores of a summary to a reward for each of its tokens."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor


def shape_rewards(scores: Tensor, kl: Tensor, mask: Tensor, beta: float) -> Tensor:
    """Give each token its KL penalty, and the last one the score on top.

    r_t = -beta d_t + [t = last] score, where the last token is EOS if there is one (Ziegler et al.
    2019, equation 2, spread over the tokens as in Ouyang et al. 2022).

    Args:
        scores: What the reward says of each summary, [B].
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


def penalise_unfinished(
    scores: Tensor, finished: Tensor, penalty: float | None, replace: bool = False
) -> Tensor:
    """Make a summary that ended without EOS score less.

    Args:
        scores: [B].
        finished: Whether the summary ended with EOS, [B].
        penalty: Amount; None leaves the scores as they are.
        replace: The score becomes ``-penalty`` (as in the N+ details) instead of falling by it (as
            in TRL): then no content makes up for a missing end.
    """
    if penalty is None:
        return scores
    worse = torch.full_like(scores, -penalty) if replace else scores - penalty
    return torch.where(finished, scores, worse)


def penalise_length(scores: Tensor, lengths: Tensor, penalty: float, free: int) -> Tensor:
    """Subtract ``penalty`` for each token beyond ``free`` ones.

    Args:
        scores: [B].
        lengths: Tokens of each summary, EOS included, [B].
        penalty: Reward a token.
        free: Tokens that cost nothing.
    """
    return scores - penalty * (lengths - free).clamp_min(0).to(scores.dtype)


@dataclass
class RunningMoments:
    """Mean and variance of all scores so far, over all batches and ranks.

    Chan et al. 1983, "Algorithms for Computing the Sample Variance", the pairwise update; in double
    precision on the host, since there are few numbers and many batches.
    """

    count: float = 0.0
    mean: float = 0.0
    squares: float = 0.0
    """Sum of squared distances from the mean."""

    def update(
        self, scores: Tensor, sum_over_ranks: Callable[[Tensor], Tensor] = lambda t: t
    ) -> None:
        """Take in a batch of scores [B]."""
        scores = scores.double()
        count, total = sum_over_ranks(
            torch.stack([scores.new_tensor(float(len(scores))), scores.sum()])
        ).tolist()
        mean = total / count
        squares = float(sum_over_ranks((scores - mean).square().sum()))
        gap, both = mean - self.mean, self.count + count
        self.squares += squares + gap**2 * self.count * count / both
        self.mean += gap * count / both
        self.count = both

    @property
    def std(self) -> float:
        """Standard deviation (biased) of all scores so far; 1 while they are all alike."""
        variance = self.squares / self.count if self.count else 0.0
        return variance**0.5 if variance > 0 else 1.0


@dataclass
class ScoreShaping:
    """What is done to a score before it becomes a reward, in this order.

    Args:
        normalise: Subtract the running mean and divide by the running standard deviation.
        scale: Multiply.
        clip: Limit the size; None is no limit.
        unfinished_penalty: See :func:`penalise_unfinished`.
        unfinished_replaces: See :func:`penalise_unfinished`.
        length_penalty: See :func:`penalise_length`.
        length_free: See :func:`penalise_length`.
        moments: Of the scores so far.
    """

    normalise: bool = False
    scale: float = 1.0
    clip: float | None = None
    unfinished_penalty: float | None = None
    unfinished_replaces: bool = False
    length_penalty: float = 0.0
    length_free: int = 0
    moments: RunningMoments = field(default_factory=RunningMoments)

    def __call__(
        self,
        scores: Tensor,
        finished: Tensor,
        lengths: Tensor,
        sum_over_ranks: Callable[[Tensor], Tensor] = lambda t: t,
    ) -> Tensor:
        """Shape scores [B] of summaries that ``finished`` [B] after ``lengths`` [B] tokens."""
        if self.normalise:
            self.moments.update(scores, sum_over_ranks)
            scores = (scores - self.moments.mean) / self.moments.std
        scores = scores * self.scale
        if self.clip is not None:
            scores = scores.clamp(-self.clip, self.clip)
        scores = penalise_unfinished(
            scores, finished, self.unfinished_penalty, self.unfinished_replaces
        )
        return penalise_length(scores, lengths, self.length_penalty, self.length_free)
