"""Rollouts: responses sampled from the policy, scored by policy and reference.

What a model reads of a prompt is computed once and shared by all samples of that prompt, and by
policy, reference and every epoch where nothing that it depends on is trained.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from lightning_modules.backbones import Backbone, Prompts, Sampling, TokenScores
from lightning_modules.ppo.value_head import ValueHead

Reference = Callable[[], AbstractContextManager[Backbone]]
"""Opens a ``with`` block in which the reference policy can be called."""


class Rollout(NamedTuple):
    """B sampled responses to P prompts, and all that PPO needs to learn from them.

    prompts: P prompts. owner [B]: index of the prompt that each response answers, ascending.
    responses [B, T]: sampled token ids, pad after EOS. mask [B, T]: True at y1..EOS. finished [B]:
    whether EOS came before the length limit. logprobs, ref_logprobs, values, entropy [B, T]: of the
    policy that sampled them (ref_logprobs: of the reference), 0 outside the mask. context: what the
    model read of the P prompts, kept where nothing that it depends on is trained.
    """

    prompts: Prompts
    owner: Int[Tensor, " B"]
    responses: Int[Tensor, "B T"]
    mask: Bool[Tensor, "B T"]
    finished: Bool[Tensor, " B"]
    logprobs: Float[Tensor, "B T"]
    ref_logprobs: Float[Tensor, "B T"]
    values: Float[Tensor, "B T"]
    entropy: Float[Tensor, "B T"]
    context: Any = None

    def rows(self, index: Tensor) -> "Rollout":
        """Select a minibatch: each of its prompts once, and no needless padding."""
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
            context=None if self.context is None else self.context.rows(prompts),
        )


def response_mask(
    responses: Int[Tensor, "B T"], eos_id: int
) -> tuple[Bool[Tensor, "B T"], Bool[Tensor, " B"]]:
    """Mark y1..EOS by position, so that a sampled pad before EOS counts as a token.

    Args:
        responses: Token ids after the decoder's prefix, [B, T].
        eos_id: Id of EOS.

    Returns:
        The mask, True up to and including the first EOS; and whether there is one.
    """
    is_eos = responses == eos_id
    eos_before = is_eos.cumsum(dim=1) - is_eos.long()
    return eos_before == 0, is_eos.any(dim=1)


@torch.no_grad()
def roll_out(
    backbone: Backbone,
    reference: Reference,
    prompts: Prompts,
    settings: Sampling,
    value_head: ValueHead | None = None,
    samples: int = 1,
    reuse_sampler: bool = False,
    chunk: int = 16,
) -> Rollout:
    """Sample responses to each prompt, and score their tokens under policy and reference.

    With ``reuse_sampler`` log-probabilities and values are those of the cached passes in which the
    tokens were drawn. In fp32 these differ from a teacher-forced pass by rounding (1e-5); in bf16
    by up to some hundredths of a nat per token, so there a teacher-forced pass is made.

    Args:
        backbone: The policy.
        reference: Opens the reference policy.
        prompts: P prompts.
        settings: How to sample.
        value_head: The policy's, if its advantages need values.
        samples: Responses to each prompt.
        reuse_sampler: Take log-probabilities and values from the sampler.
        chunk: Rows that are scored in one pass.
    """
    context, is_shared = backbone.read(prompts), not backbone.trains_context
    owner = torch.arange(len(prompts.input_ids), device=prompts.input_ids.device)
    owner = owner.repeat_interleave(samples)
    drawn = backbone.sample(context.rows(owner), settings, value_head if reuse_sampler else None)
    mask, finished = response_mask(drawn.responses, backbone.eos_id)
    given = (owner, drawn.responses, mask, settings.temperature, chunk)
    old = TokenScores(drawn.logprobs, drawn.entropy, drawn.values)
    if not reuse_sampler:
        old = score_in_chunks(backbone, context, *given, value_head, with_entropy=True)
    with reference() as start:
        its = context if is_shared else start.read(prompts)
        ref_logprobs = score_in_chunks(start, its, *given).logprobs
    return Rollout(
        prompts, owner, drawn.responses, mask, finished, old.logprobs, ref_logprobs, old.values,
        old.entropy, context if is_shared else None,
    )  # fmt: skip


@torch.no_grad()
def score_in_chunks(
    backbone: Backbone,
    context: Any,
    owner: Int[Tensor, " B"],
    responses: Int[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    temperature: float,
    chunk: int,
    value_head: ValueHead | None = None,
    with_entropy: bool = False,
) -> TokenScores:
    """Score B responses without gradient, ``chunk`` of them in a pass; see :meth:`Backbone.score`.

    Args:
        backbone: The policy or the reference.
        context: What it has read of P prompts.
        owner: Index of the prompt that each response answers.
        responses: Token ids.
        mask: True at y1..EOS.
        temperature: The sampler's.
        chunk: Rows in a pass; it bounds memory and changes no result.
        value_head: Reads the last hidden states.
        with_entropy: Compute the entropy too.
    """
    width, parts = responses.shape[1], []
    for rows in torch.arange(len(responses), device=responses.device).split(chunk):
        longest = int(mask[rows].sum(dim=1).max())
        part = backbone.score(
            context.rows(owner[rows]), responses[rows, :longest], mask[rows, :longest],
            temperature, value_head, with_entropy,
        )  # fmt: skip
        parts.append([F.pad(each, (0, width - longest)) for each in part])
    return TokenScores(*(torch.cat(each) for each in zip(*parts, strict=True)))
