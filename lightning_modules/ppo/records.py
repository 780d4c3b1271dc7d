"""A batch of rollouts as plain JSON values, and back again to the last bit.

One record for each rollout, its tokens without padding, and one for the batch as a whole. A Python
float holds an fp32 number exactly and JSON writes it with as many digits as it takes, so what is
read back is what was written.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lightning_modules.ppo.rollout import Rollout
from lightning_modules.ppo.token_scores import Prompts
from lightning_modules.ppo.update import Experience

Record = dict[str, Any]
Vocabulary = Callable[[Sequence[int]], list[str]]

PER_TOKEN = (
    "logprobs", "ref_logprobs", "new_logprobs", "values", "entropy", "rewards", "advantages",
    "returns",
)  # fmt: skip
"""What a record has a list of, one number for each of y1..EOS."""


class Recorded(NamedTuple):
    """A batch of B rollouts as it was learnt from.

    experience: as the update got it; ``rollout.encoded`` is not recorded. rewards [B, T], per
    token. terms: scores of each term, [B]. scores [B]: their weighted sum. shaped [B]: what was
    made of it. beta: weight of the KL. batch: batches of rollouts before this one. rank, ranks:
    whose rows they are, of how many. learning_rates: of each group of parameters in this update.
    figures: what was logged; times and speed are that rank's.
    """

    experience: Experience
    rewards: Tensor
    terms: dict[str, Tensor]
    scores: Tensor
    shaped: Tensor
    beta: float
    batch: int
    rank: int
    ranks: int
    learning_rates: list[float]
    figures: dict[str, float]

    @property
    def samples(self) -> int:
        """Rollouts to a prompt."""
        rollout = self.experience.rollout
        return len(rollout.owner) // len(rollout.prompts.input_ids)


def to_records(
    step: Mapping[str, Any], ids: Sequence[str], prompts: Sequence[str], vocabulary: Vocabulary
) -> list[Record]:
    """Turn what a training step returned into one record for each rollout.

    Args:
        step: What :meth:`PPOPolicy.training_step` returned, on the CPU.
        ids: Row ids of the P prompts.
        prompts: The P prompts as texts.
        vocabulary: Gives the pieces of text that token ids stand for, as the tokenizer writes them.
    """
    experience: Experience = step["experience"]
    rollout, tokens = experience.rollout, _per_token(step)
    columns = {name: None if each is None else each.tolist() for name, each in tokens.items()}
    lengths = rollout.mask.sum(dim=1).tolist()
    owner, responses = rollout.owner.tolist(), rollout.responses.tolist()
    read = rollout.prompts.attention_mask.bool()
    prompt_tokens = [
        row[real].tolist() for row, real in zip(rollout.prompts.input_ids, read, strict=True)
    ]
    terms = {name: values.tolist() for name, values in step["terms"].items()}
    scores, shaped = step["score"].tolist(), step["shaped"].tolist()
    finished = rollout.finished.tolist()
    return [
        {
            "batch": step["batch"],
            "id": ids[owner[row]],
            "prompt_index": owner[row],
            "prompt": prompts[owner[row]],
            "prompt_tokens": prompt_tokens[owner[row]],
            "response": step["texts"][row],
            "response_tokens": responses[row][:length],
            "response_pieces": vocabulary(responses[row][:length]),
            "finished": finished[row],
            "terms": {name: values[row] for name, values in terms.items()},
            "score": scores[row],
            "shaped_score": shaped[row],
            "beta": step["beta"],
        }
        | {name: None if each is None else each[row][:length] for name, each in columns.items()}
        for row, length in enumerate(lengths)
    ]


def describe(
    step: Mapping[str, Any], rank: int, ranks: int, learning_rates: Sequence[float]
) -> Record:
    """Give what a batch has beside its rows, and what it takes to read these back.

    Args:
        step: What :meth:`PPOPolicy.training_step` returned, on the CPU.
        rank: Whose rows they are.
        ranks: Number of ranks.
        learning_rates: Of each group of parameters, in this update.
    """
    experience: Experience = step["experience"]
    tokens = _per_token(step)
    return {
        "batch": step["batch"],
        "rank": rank,
        "ranks": ranks,
        # Padding changes no result but its last bits.
        "prompt_width": experience.rollout.prompts.input_ids.shape[1],
        "loss_beta": experience.beta,
        "learning_rates": list(learning_rates),
        "dtypes": {
            name: str(each.dtype).removeprefix("torch.")
            for name, each in tokens.items()
            if each is not None
        },
        "figures": {name: float(value) for name, value in step["figures"].items()},
    }


def from_records(records: Sequence[Record], batch: Record, pad_id: int) -> Recorded:
    """Read a batch back, padded as it was.

    Args:
        records: Of :func:`to_records`, in their order.
        batch: Of :func:`describe`.
        pad_id: Fills prompts and responses up.
    """
    responses = [torch.tensor(record["response_tokens"]) for record in records]
    lengths = torch.tensor([len(each) for each in responses])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    columns = {name: _read_tokens(records, batch, name, mask) for name in PER_TOKEN}
    nothing = torch.zeros(mask.shape)  # where a policy has no value head
    rollout = Rollout(
        prompts=_read_prompts(records, batch["prompt_width"], pad_id),
        owner=torch.tensor([record["prompt_index"] for record in records]),
        responses=pad_sequence(responses, batch_first=True, padding_value=pad_id),
        mask=mask,
        finished=torch.tensor([record["finished"] for record in records]),
        logprobs=columns["logprobs"],
        ref_logprobs=columns["ref_logprobs"],
        values=nothing if columns["values"] is None else columns["values"],
        entropy=columns["entropy"],
    )
    names = records[0]["terms"]
    return Recorded(
        experience=Experience(
            rollout, columns["advantages"], columns["returns"], batch["loss_beta"]
        ),
        rewards=columns["rewards"],
        terms={name: torch.tensor([record["terms"][name] for record in records]) for name in names},
        scores=torch.tensor([record["score"] for record in records]),
        shaped=torch.tensor([record["shaped_score"] for record in records]),
        beta=records[0]["beta"],
        **{name: batch[name] for name in ("batch", "rank", "ranks", "learning_rates", "figures")},
    )


def _per_token(step: Mapping[str, Any]) -> dict[str, Tensor | None]:
    """Give the tensors [B, T] of a step by name; values and returns None without a value head."""
    experience: Experience = step["experience"]
    rollout = experience.rollout
    return {
        "logprobs": rollout.logprobs,
        "ref_logprobs": rollout.ref_logprobs,
        "new_logprobs": step["new_logprobs"],
        "values": None if experience.returns is None else rollout.values,
        "entropy": rollout.entropy,
        "rewards": step["rewards"],
        "advantages": experience.advantages,
        "returns": experience.returns,
    }


def _read_tokens(records: Sequence[Record], batch: Record, name: str, mask: Tensor) -> Any:
    """Read one number a token: [B, T], 0 outside the mask; None where it was not there."""
    if name not in batch["dtypes"]:
        return None
    dtype = getattr(torch, batch["dtypes"][name])
    numbers = [number for record in records for number in record[name]]
    return torch.zeros(mask.shape, dtype=dtype).masked_scatter(
        mask, torch.tensor(numbers, dtype=dtype)
    )


def _read_prompts(records: Sequence[Record], width: int, pad_id: int) -> Prompts:
    """Read each prompt once: [P, S]."""
    by_index = {record["prompt_index"]: record["prompt_tokens"] for record in records}
    input_ids = torch.full((len(by_index), width), pad_id)
    attention_mask = torch.zeros_like(input_ids)
    for index, tokens in by_index.items():
        input_ids[index, : len(tokens)] = torch.tensor(tokens)
        attention_mask[index, : len(tokens)] = 1
    return Prompts(input_ids, attention_mask)
