"""Sample responses from a policy's own distribution, token by token.

``generate`` is not used: it filters by whatever the model's generation config holds (the 50
likeliest tokens unless told otherwise), and throws away the log-probabilities, the states that the
value head reads, and the time spent on rows that have long ended.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_modules.ppo.decoder_steps import CompiledSteps, DecoderSteps, GrowingSteps
from lightning_modules.ppo.head import head_logits
from lightning_modules.ppo.value_head import ValueHead


class Sampling(NamedTuple):
    """How responses are drawn: at most max_new_tokens (EOS included), logits over temperature.

    compile: backend of ``torch.compile`` for the decoding step; None decodes as the model is.
    """

    max_new_tokens: int
    temperature: float
    eos_id: int
    pad_id: int
    compile: str | None = None


class Samples(NamedTuple):
    """B sampled responses, each tensor [B, T].

    responses: token ids without the start token, pad after EOS. logprobs: log pi(y_t) at the
    sampler's temperature, nats. entropy: of the distribution that y_t was drawn from, nats. values:
    of the state before y_t; 0 without a head. All are 0 after EOS.
    """

    responses: Tensor
    logprobs: Tensor
    entropy: Tensor
    values: Tensor


@torch.no_grad()
def sample(
    model: Any,
    hidden: Tensor,
    attention_mask: Tensor,
    settings: Sampling,
    value_head: ValueHead | None = None,
) -> Samples:
    """Sample one response for each row of encoder states; nothing is filtered out.

    Rows that have ended are dropped from the running batch once they are half of it.

    Args:
        model: The encoder-decoder itself, without PEFT's wrapping.
        hidden: Encoder states, [B, S, d].
        attention_mask: [B, S].
        settings: How to sample.
        value_head: Reads the states that the tokens are drawn in; None leaves the values 0.
    """
    steps: DecoderSteps
    if settings.compile is None:
        steps = GrowingSteps(model, hidden, attention_mask)
    else:
        limit = settings.max_new_tokens
        steps = CompiledSteps(model, hidden, attention_mask, limit, settings.compile)
    rows = torch.arange(len(hidden), device=hidden.device)
    with steps.prepare():
        return _sample(model, steps, rows, settings, value_head)


def _sample(
    model: Any,
    steps: DecoderSteps,
    rows: Tensor,
    settings: Sampling,
    value_head: ValueHead | None,
) -> Samples:
    limit, temperature, eos_id, pad_id, _ = settings
    responses = torch.full((len(rows), limit), pad_id, device=rows.device)
    logprobs, entropy, values = torch.zeros(3, len(rows), limit, device=rows.device)
    live = torch.ones_like(rows, dtype=torch.bool)
    tokens = torch.full_like(rows, model.config.decoder_start_token_id)
    for step in range(limit):
        state = steps(tokens)
        likelihoods = (head_logits(model, state).float() / temperature).log_softmax(dim=-1)
        chances = likelihoods.exp()
        tokens = draw(chances)

        now = (rows[live], step)
        responses[now] = tokens[live]
        logprobs[now] = likelihoods.gather(1, tokens[:, None])[live, 0]
        entropy[now] = -(chances * likelihoods).sum(dim=-1)[live]
        if value_head is not None:
            values[now] = value_head(state)[live]

        live = live & (tokens != eos_id)
        count = int(live.sum())
        if count == 0:
            break
        if 2 * count <= len(live):
            kept = live.nonzero().squeeze(1)
            steps.keep(kept)
            rows, tokens, live = rows[kept], tokens[kept], live[kept]
    width = step + 1
    return Samples(*(each[:, :width] for each in (responses, logprobs, entropy, values)))


def draw(chances: Tensor) -> Tensor:
    """Draw an index from each row of probabilities [B, V]: int64 [B].

    On a CPU ``torch.multinomial`` makes a random number for every token of the vocabulary, on one
    core. Here it is one a row, and the cumulative distribution is inverted; in fp64, so that rare
    tokens keep their share of the sum.
    """
    if chances.device.type != "cpu":
        return torch.multinomial(chances, 1).squeeze(1)
    cumulative = chances.double().cumsum(dim=-1)
    # Times the sum as it was rounded, for it need not be 1.
    numbers = torch.rand(len(chances), 1, dtype=torch.float64) * cumulative[:, -1:]
    drawn = torch.searchsorted(cumulative, numbers, right=True).squeeze(1)
    return drawn.clamp_max(chances.shape[-1] - 1)  # a product may round up to the sum
