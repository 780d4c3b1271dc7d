"""PPOStep: what one training step of PPO hands to callbacks, and its rollouts as JSON values."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from lightning_modules.ppo.rollout import Rollout


@dataclass(frozen=True)
class PPOStep:
    """One batch of B rollouts, and what PPO made of it.

    Args:
        batch: Number of batches of rollouts before this one.
        rollout: The rollouts.
        texts: The B summaries.
        terms: Scores of each reward term by its name, before its weight.
        scores: Weighted sum of the terms.
        shaped: The scores after normalization and penalties.
        rewards: Reward of each token.
        advantages: As the update used them.
        returns: Targets of the value head; None without one.
        new_logprobs: log pi(y_t) in the last epoch, just before its optimizer step.
        beta: Weight of the KL.
        metrics: Everything that was logged.
    """

    batch: int
    rollout: Rollout
    texts: list[str]
    terms: dict[str, Float[Tensor, " B"]]
    scores: Float[Tensor, " B"]
    shaped: Float[Tensor, " B"]
    rewards: Float[Tensor, "B T"]
    advantages: Float[Tensor, "B T"]
    returns: Float[Tensor, "B T"] | None
    new_logprobs: Float[Tensor, "B T"]
    beta: float
    metrics: dict[str, Any]

    def per_token(self) -> dict[str, Float[Tensor, "B T"] | None]:
        """Return what has one number for each token; None are values without a value head."""
        rollout = self.rollout
        return {
            "logprobs": rollout.logprobs,
            "ref_logprobs": rollout.ref_logprobs,
            "new_logprobs": self.new_logprobs,
            "values": None if self.returns is None else rollout.values,
            "entropy": rollout.entropy,
            "rewards": self.rewards,
            "advantages": self.advantages,
            "returns": self.returns,
        }

    def to_records(
        self,
        ids: Sequence[str],
        prompts: Sequence[str],
        to_pieces: Callable[[Sequence[int]], list[str]],
    ) -> list[dict[str, Any]]:
        """Describe each rollout by plain JSON values, its tokens without padding.

        Args:
            ids: Row ids of the P prompts.
            prompts: The P prompts as texts.
            to_pieces: Maps token ids to the tokenizer's pieces of text.
        """
        records = []
        for row, (place, mask) in enumerate(
            zip(self.rollout.owner.tolist(), self.rollout.mask, strict=True)
        ):
            read = self.rollout.prompts.attention_mask[place].bool()
            response = self.rollout.responses[row, mask].tolist()
            record = {
                "batch": self.batch,
                "id": ids[place],
                "prompt_index": place,
                "prompt": prompts[place],
                "prompt_tokens": self.rollout.prompts.input_ids[place, read].tolist(),
                "response": self.texts[row],
                "response_tokens": response,
                "response_pieces": to_pieces(response),
                "finished": bool(self.rollout.finished[row]),
                "terms": {name: float(values[row]) for name, values in self.terms.items()},
                "score": float(self.scores[row]),
                "shaped_score": float(self.shaped[row]),
                "beta": self.beta,
            }
            for name, values in self.per_token().items():
                record[name] = None if values is None else values[row, mask].tolist()
            records.append(record)
        return records
