"""What a model says of given response tokens: log-probabilities, entropies and values.

An encoder-decoder reads the prompt in its encoder; its decoder starts from a start token and writes
the response y1..yn alone. So with decoder input [start, y1..y_{n-1}] the logits at position t are
those that y_t was drawn from, and no prompt token is ever in the way.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_modules.adapters import find_virtual_tokens, unwrap
from lightning_modules.ppo.crossing import project, projected
from lightning_modules.ppo.head import head_logits
from lightning_modules.ppo.value_head import ValueHead


class Prompts(NamedTuple):
    """Tokenised prompts: input_ids [P, S], right-padded, and attention_mask [P, S]."""

    input_ids: Tensor
    attention_mask: Tensor

    def rows(self, index: Tensor) -> "Prompts":
        """Take some of the rows, no wider than the longest of them."""
        return Prompts(*_take(self.input_ids, self.attention_mask, index))


class Encoded(NamedTuple):
    """What a decoder attends to: hidden [P, S, d] and attention_mask [P, S].

    S counts virtual tokens too, which stand before the prompt's. projected: what the decoder's
    frozen layers make of hidden, [P, S, inner] each, or nothing; see :mod:`~.crossing`.
    """

    hidden: Tensor
    attention_mask: Tensor
    projected: tuple[Tensor, ...] = ()

    def rows(self, index: Tensor) -> "Encoded":
        """Take some of the rows, no wider than the longest of them."""
        hidden, mask = _take(self.hidden, self.attention_mask, index)
        products = (each[index, : mask.shape[1]] for each in self.projected)
        return Encoded(hidden, mask, tuple(products))


class TokenScores(NamedTuple):
    """What a model says of given response tokens, each [B, T], 0 outside the mask.

    logprobs: log pi(y_t), nats, at the sampling temperature. entropy: of the distribution that y_t
    was drawn from, nats, without gradient. values: of the state before y_t.
    """

    logprobs: Tensor
    entropy: Tensor
    values: Tensor


def encode(model: Any, prompts: Prompts, projects: bool = False) -> Encoded:
    """Run the encoder of a model, with whatever adapter is active, once for each prompt.

    Args:
        model: The encoder-decoder.
        prompts: P prompts.
        projects: Whether the decoder's frozen layers read its output now, for all passes over it;
            it takes 2 x layers times the memory of the output.
    """
    backbone = unwrap(model)
    inputs = backbone.get_input_embeddings()(prompts.input_ids)
    mask = prompts.attention_mask
    if (virtual := find_virtual_tokens(model, len(mask))) is not None:
        inputs = torch.cat([virtual.to(inputs.dtype), inputs], dim=1)
        mask = torch.cat([mask.new_ones(virtual.shape[:2]), mask], dim=1)
    encoder = backbone.get_encoder()
    hidden = encoder(inputs_embeds=inputs, attention_mask=mask).last_hidden_state
    return Encoded(hidden, mask, project(backbone.get_decoder(), hidden, mask) if projects else ())


def score_tokens(
    model: Any,
    encoded: Encoded,
    responses: Tensor,
    mask: Tensor,
    temperature: float,
    value_head: ValueHead | None = None,
    with_entropy: bool = False,
) -> TokenScores:
    """Read log-probabilities, entropies and values of given responses in one decoder pass.

    The temperature divides the logits here as in the sampler; the softmax is taken in fp32, and
    only at the real tokens, for the vocabulary is the widest thing in the model.

    Args:
        model: The encoder-decoder, with the adapter of the wanted policy active.
        encoded: Its encoder's output, one row for each response.
        responses: Token ids without the start token, [B, T].
        mask: True at y1..EOS, [B, T].
        temperature: That of the sampler.
        value_head: Reads the decoder's last hidden states; None leaves the values 0.
        with_entropy: Compute the entropy too; otherwise it is left 0.
    """
    backbone = unwrap(model)
    decoder = backbone.get_decoder()
    with projected(decoder, encoded.projected):
        output = decoder(
            input_ids=shift_right(responses, backbone.config.decoder_start_token_id),
            encoder_hidden_states=encoded.hidden,
            encoder_attention_mask=encoded.attention_mask,
            use_cache=False,
        )
    hidden = output.last_hidden_state[mask]
    logits = head_logits(backbone, hidden).float() / temperature
    logprobs = -F.cross_entropy(logits, responses[mask], reduction="none")
    entropy = torch.zeros_like(logprobs)
    if with_entropy:
        with torch.no_grad():
            entropy = entropy_of(logits)
    values = torch.zeros_like(logprobs) if value_head is None else value_head(hidden)
    return TokenScores(*(_spread(each, mask) for each in (logprobs, entropy, values)))


def entropy_of(logits: Tensor) -> Tensor:
    """Entropy in nats of the distributions that logits [..., V] stand for: [...]."""
    logprobs = logits.log_softmax(dim=-1)
    return -(logprobs.exp() * logprobs).sum(dim=-1)


@torch.no_grad()
def score_in_chunks(
    model: Any,
    encoded: Encoded,
    owner: Tensor,
    responses: Tensor,
    mask: Tensor,
    temperature: float,
    chunk: int,
    value_head: ValueHead | None = None,
    with_entropy: bool = False,
) -> TokenScores:
    """Score B responses, ``chunk`` of them in a pass, without gradient; see :func:`score_tokens`.

    Args:
        model: As in :func:`score_tokens`.
        encoded: Of P prompts.
        owner: Which of them each response answers, [B].
        responses: [B, T].
        mask: [B, T].
        temperature: That of the sampler.
        chunk: Rows in a pass; it bounds the memory and changes no result.
        value_head: As in :func:`score_tokens`.
        with_entropy: As in :func:`score_tokens`.
    """
    width = responses.shape[1]
    parts = []
    for rows in torch.arange(len(responses), device=responses.device).split(chunk):
        longest = int(mask[rows].sum(dim=1).max())
        part = score_tokens(
            model, encoded.rows(owner[rows]), responses[rows, :longest], mask[rows, :longest],
            temperature, value_head, with_entropy,
        )  # fmt: skip
        parts.append([F.pad(each, (0, width - longest)) for each in part])
    return TokenScores(*(torch.cat(each) for each in zip(*parts, strict=True)))


def shift_right(responses: Tensor, start_id: int) -> Tensor:
    """Give the decoder input [start, y1..y_{T-1}] for responses y1..yT, both [B, T]."""
    start = torch.full_like(responses[:, :1], start_id)
    return torch.cat([start, responses[:, :-1]], dim=1)


def _take(values: Tensor, mask: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Take rows of right-padded values [P, S, ...] and of their mask, less needless padding."""
    mask = mask[index]
    width = int(mask.sum(dim=1).max())
    return values[index, :width], mask[:, :width]


def _spread(real: Tensor, mask: Tensor) -> Tensor:
    """Put the values of the real tokens [N] back where the mask [B, T] has them, 0 elsewhere."""
    return real.new_zeros(mask.shape).masked_scatter(mask, real)
