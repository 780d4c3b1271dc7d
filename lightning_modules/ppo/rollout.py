"""Sample responses from a policy, and read log-probabilities and values of tokens already sampled.

An encoder-decoder reads the prompt in its encoder; its decoder starts from a start token and writes
the response y1..yn alone. So with decoder input [start, y1..y_{n-1}] the logits at position t are
those that y_t was drawn from, and no prompt token is ever in the way.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from lightning_modules.adapters import reference_policy
from lightning_modules.ppo.value_head import ValueHead


class Prompts(NamedTuple):
    """A batch of tokenised prompts: input_ids [B, S], right-padded, and attention_mask [B, S]."""

    input_ids: Tensor
    attention_mask: Tensor

    def rows(self, index: Tensor) -> "Prompts":
        """Take some of the rows."""
        return Prompts(self.input_ids[index], self.attention_mask[index])


class Sampling(NamedTuple):
    """How responses are drawn: at most max_new_tokens (EOS included), logits over temperature."""

    max_new_tokens: int
    temperature: float
    eos_id: int


class TokenScores(NamedTuple):
    """What a model says of given response tokens, each [B, T].

    logprobs: log pi(y_t), nats, at the sampling temperature. entropy: of the distribution that y_t
    was drawn from, nats, without gradient. values: of the state before y_t; zeros without a head.
    """

    logprobs: Tensor
    entropy: Tensor
    values: Tensor


class Rollout(NamedTuple):
    """A batch of sampled responses and all that PPO needs to learn from them.

    prompts: B prompts. responses [B, T]: sampled token ids, pad after EOS. mask [B, T]: True at
    y1..EOS. finished [B]: whether EOS came before the length limit. logprobs, ref_logprobs, values,
    entropy [B, T]: of the policy (the reference for ref_logprobs) that sampled them.
    """

    prompts: Prompts
    responses: Tensor
    mask: Tensor
    finished: Tensor
    logprobs: Tensor
    ref_logprobs: Tensor
    values: Tensor
    entropy: Tensor

    def rows(self, index: Tensor) -> "Rollout":
        """Take some of the rows: a minibatch."""
        return Rollout(self.prompts.rows(index), *(tensor[index] for tensor in self[1:]))


def encode(model: Any, prompts: Prompts) -> BaseModelOutput:
    """Run the encoder of a model (with whatever adapter is active): hidden states [B, S, d]."""
    encoder = model.get_encoder()
    return encoder(input_ids=prompts.input_ids, attention_mask=prompts.attention_mask)


@torch.no_grad()
def sample(
    model: Any,
    prompts: Prompts,
    encoded: BaseModelOutput,
    settings: Sampling,
    keep_logits: bool = False,
) -> tuple[Tensor, list[Tensor]]:
    """Sample one response a prompt from the policy's own distribution, nothing filtered out.

    ``generate`` by itself would keep the 50 likeliest tokens only; what is then sampled is not what
    the log-probabilities are about.

    Returns:
        Token ids [B, T] without the start token, pad after EOS; and, if they are kept, the T sets
        of logits [B, V] that the sampler drew from (large: only checks want them).
    """
    output = model.generate(
        encoder_outputs=encoded,
        attention_mask=prompts.attention_mask,
        do_sample=True,
        # What the backbone's own generation config may ask for.
        num_beams=1,
        num_return_sequences=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        temperature=settings.temperature,
        top_k=0,
        top_p=1.0,
        max_new_tokens=settings.max_new_tokens,
        min_length=0,
        # The mask ends at this one; the model's own list of ends may be longer.
        eos_token_id=settings.eos_id,
        return_dict_in_generate=True,
        output_scores=keep_logits,
    )
    return output.sequences[:, 1:], list(output.scores or ())


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


def score_tokens(
    model: Any,
    prompts: Prompts,
    responses: Tensor,
    temperature: float,
    value_head: ValueHead | None = None,
    encoded: BaseModelOutput | None = None,
) -> TokenScores:
    """Read log-probabilities, entropies and values of given responses in one decoder pass.

    The temperature divides the logits here as in :func:`sample`; the softmax is taken in fp32.

    Args:
        model: The encoder-decoder, with the adapter of the wanted policy active.
        prompts: B prompts.
        responses: Token ids without the start token, [B, T].
        temperature: That of the sampler.
        value_head: Reads the decoder's last hidden states; None leaves the values 0.
        encoded: The encoder's output for these prompts under this same policy, if at hand.
    """
    if encoded is None:
        encoded = encode(model, prompts)
    output = model(
        encoder_outputs=encoded,
        attention_mask=prompts.attention_mask,
        decoder_input_ids=shift_right(responses, model.config.decoder_start_token_id),
        output_hidden_states=value_head is not None,
        use_cache=False,
    )
    logits = output.logits.float() / temperature
    normaliser = logits.logsumexp(dim=-1)
    logprobs = logits.gather(-1, responses.unsqueeze(-1)).squeeze(-1) - normaliser
    with torch.no_grad():
        entropy = normaliser - (logits.softmax(dim=-1) * logits).sum(dim=-1)
    if value_head is None:
        return TokenScores(logprobs, entropy, torch.zeros_like(entropy))
    return TokenScores(logprobs, entropy, value_head(output.decoder_hidden_states[-1]))


@torch.no_grad()
def roll_out(
    model: Any,
    value_head: ValueHead,
    prompts: Prompts,
    settings: Sampling,
    keep_logits: bool = False,
) -> tuple[Rollout, list[Tensor]]:
    """Sample a response to each prompt and score its tokens under policy and reference.

    The policy's encoder runs once for the sampler and for the log-probabilities. The latter come
    from a teacher-forced pass as in the update, not from the sampler, whose cached passes round
    differently under bf16.

    Args:
        model: The backbone with the policy's adapter active.
        value_head: Of the policy.
        prompts: B prompts.
        settings: How to sample.
        keep_logits: Give the sampler's own logits too.

    Returns:
        The rollout, and the sampler's own logits, T times [B, V], if they are kept.
    """
    encoded = encode(model, prompts)
    responses, sampler_logits = sample(
        model.get_base_model(), prompts, encoded, settings, keep_logits
    )
    mask, finished = response_mask(responses, settings.eos_id)
    old = score_tokens(model, prompts, responses, settings.temperature, value_head, encoded)
    with reference_policy(model):
        reference = score_tokens(model, prompts, responses, settings.temperature)
    rollout = Rollout(
        prompts, responses, mask, finished,
        old.logprobs, reference.logprobs, old.values, old.entropy,
    )  # fmt: skip
    return rollout, sampler_logits


def shift_right(responses: Tensor, start_id: int) -> Tensor:
    """Give the decoder input [start, y1..y_{T-1}] for responses y1..yT, both [B, T]."""
    start = torch.full_like(responses[:, :1], start_id)
    return torch.cat([start, responses[:, :-1]], dim=1)
