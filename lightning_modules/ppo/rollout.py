"""Rollouts: responses sampled from the policy, and what policy and reference say of their tokens.

The encoder's output depends on the prompt only: it is computed once a prompt and shared by all
samples of that prompt, and by policy, reference and every epoch where nothing in the encoder is
trained.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_modules.adapters import reference_policy, unwrap
from lightning_modules.ppo.crossing import projected
from lightning_modules.ppo.sampling import Sampling, sample
from lightning_modules.ppo.token_scores import (
    Encoded,
    Prompts,
    TokenScores,
    encode,
    score_in_chunks,
)
from lightning_modules.ppo.value_head import ValueHead


class Rollout(NamedTuple):
    """B sampled responses to P prompts, and all that PPO needs to learn from them.

    prompts: P prompts. owner [B]: which prompt each response answers, in ascending order. responses
    [B, T]: sampled token ids, pad after EOS. mask [B, T]: True at y1..EOS. finished [B]: whether
    EOS came before the length limit. logprobs, ref_logprobs, values, entropy [B, T]: of the policy
    (the reference for ref_logprobs) that sampled them, 0 outside the mask. encoded: of the P
    prompts, kept where nothing in the encoder is trained.
    """

    prompts: Prompts
    owner: Tensor
    responses: Tensor
    mask: Tensor
    finished: Tensor
    logprobs: Tensor
    ref_logprobs: Tensor
    values: Tensor
    entropy: Tensor
    encoded: Encoded | None = None

    def rows(self, index: Tensor) -> "Rollout":
        """Take some of the rows, a minibatch: its prompts once each, and no needless padding."""
        prompts, owner = self.owner[index].unique(return_inverse=True)
        width = int(self.mask[index].sum(dim=1).max())
        return Rollout(
            prompts=self.prompts.rows(prompts),
            owner=owner,
            responses=self.responses[index, :width],
            mask=self.mask[index, :width],
            finished=self.finished[index],
            logprobs=self.logprobs[index, :width],
            ref_logprobs=self.ref_logprobs[index, :width],
            values=self.values[index, :width],
            entropy=self.entropy[index, :width],
            encoded=None if self.encoded is None else self.encoded.rows(prompts),
        )


def response_mask(responses: Tensor, eos_id: int) -> tuple[Tensor, Tensor]:
    """Mark y1..EOS by position, so that a sampled pad before EOS counts as the token it is.

    Args:
        responses: Token ids without the start token, [B, T].
        eos_id: Id of EOS.

    Returns:
        The mask, bool [B, T], True up to and with the first EOS; and whether there is one, [B].
    """
    is_eos = responses == eos_id
    eos_before = is_eos.cumsum(dim=1) - is_eos.long()
    return eos_before == 0, is_eos.any(dim=1)


@torch.no_grad()
def roll_out(
    model: Any,
    prompts: Prompts,
    settings: Sampling,
    value_head: ValueHead | None = None,
    reference: Any = None,
    samples: int = 1,
    shared_encoder: bool = False,
    reuse_sampler: bool = False,
    chunk: int = 16,
) -> Rollout:
    """Sample responses to each prompt and score their tokens under policy and reference.

    Passes: the policy's encoder runs once a prompt, for the sampler, the log-probabilities and, if
    it is shared, the reference. With ``reuse_sampler`` log-probabilities and values are those of
    the cached passes that the tokens were drawn in. In fp32 these differ from a teacher-forced pass
    by rounding (1e-5); under bf16 by up to some hundredths of a nat a token, and then a
    teacher-forced pass of the same kind as the update's is made.

    Args:
        model: The policy, its adapter active.
        prompts: P prompts.
        settings: How to sample.
        value_head: Of the policy, if its advantages ask for values.
        reference: A model of its own for the reference; None where adapters hold it.
        samples: Responses for each prompt.
        shared_encoder: Whether nothing in the encoder is trained, so that its output serves all.
        reuse_sampler: Take log-probabilities and values from the sampler.
        chunk: Rows that are scored in one pass.
    """
    projects = shared_encoder or samples > 1
    encoded = encode(model, prompts, projects)
    owner = torch.arange(len(prompts.input_ids), device=encoded.hidden.device)
    owner = owner.repeat_interleave(samples)
    backbone, rows = unwrap(model), encoded.rows(owner) if samples > 1 else encoded
    with projected(backbone.get_decoder(), rows.projected):
        drawn = sample(
            backbone, rows.hidden, rows.attention_mask, settings,
            value_head if reuse_sampler else None,
        )  # fmt: skip
    mask, finished = response_mask(drawn.responses, settings.eos_id)
    said = (owner, drawn.responses, mask, settings.temperature, chunk)
    old = TokenScores(drawn.logprobs, drawn.entropy, drawn.values)
    if not reuse_sampler:
        old = score_in_chunks(model, encoded, *said, value_head, with_entropy=True)
    with reference_policy(model, reference) as start:
        its = encoded if shared_encoder else encode(start, prompts)
        ref_logprobs = score_in_chunks(start, its, *said).logprobs
    return Rollout(
        prompts, owner, drawn.responses, mask, finished,
        old.logprobs, ref_logprobs, old.values, old.entropy,
        encoded if shared_encoder else None,
    )  # fmt: skip
