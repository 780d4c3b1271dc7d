"""A batch of rollouts as plain JSON values: one record per rollout, its tokens without padding."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from lightning_modules.ppo.step import PPOStep

Record = dict[str, Any]
Vocabulary = Callable[[Sequence[int]], list[str]]

PER_TOKEN = (
    "logprobs", "ref_logprobs", "new_logprobs", "values", "entropy", "rewards", "advantages",
    "returns",
)  # fmt: skip
"""Keys with one number for each of y1..EOS."""


def to_records(
    step: PPOStep, ids: Sequence[str], prompts: Sequence[str], vocabulary: Vocabulary
) -> list[Record]:
    """Turn what a training step returned into one record per rollout.

    Args:
        step: What :meth:`PPOPolicy.training_step` returned.
        ids: Row ids of the P prompts.
        prompts: The P prompts as texts.
        vocabulary: Maps token ids to the tokenizer's pieces of text.
    """
    rollout, tokens = step.rollout, _per_token(step)
    columns = {name: None if each is None else each.tolist() for name, each in tokens.items()}
    lengths = rollout.mask.sum(dim=1).tolist()
    owner, responses = rollout.owner.tolist(), rollout.responses.tolist()
    read = rollout.prompts.attention_mask.bool()
    prompt_tokens = [
        row[real].tolist() for row, real in zip(rollout.prompts.input_ids, read, strict=True)
    ]
    terms = {name: values.tolist() for name, values in step.terms.items()}
    scores, shaped = step.scores.tolist(), step.shaped.tolist()
    finished = rollout.finished.tolist()
    return [
        {
            "batch": step.batch,
            "id": ids[owner[row]],
            "prompt_index": owner[row],
            "prompt": prompts[owner[row]],
            "prompt_tokens": prompt_tokens[owner[row]],
            "response": step.texts[row],
            "response_tokens": responses[row][:length],
            "response_pieces": vocabulary(responses[row][:length]),
            "finished": finished[row],
            "terms": {name: values[row] for name, values in terms.items()},
            "score": scores[row],
            "shaped_score": shaped[row],
            "beta": step.beta,
        }
        | {name: None if each is None else each[row][:length] for name, each in columns.items()}
        for row, length in enumerate(lengths)
    ]


def _per_token(step: PPOStep) -> dict[str, Tensor | None]:
    """Return the tensors [B, T] of a step; values and returns are None without a value head."""
    rollout = step.rollout
    return {
        "logprobs": rollout.logprobs,
        "ref_logprobs": rollout.ref_logprobs,
        "new_logprobs": step.new_logprobs,
        "values": None if step.returns is None else rollout.values,
        "entropy": rollout.entropy,
        "rewards": step.rewards,
        "advantages": step.advantages,
        "returns": step.returns,
    }
