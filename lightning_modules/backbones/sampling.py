"""Sample responses from a model's full distribution, token by token.

``generate`` is not used: it filters by whatever the model's generation config holds (the 50 most
likely tokens by default), and discards log-probabilities, hidden states, and the time spent on rows
that ended long ago.
"""

from typing import Protocol

import torch
from torch import Tensor

from lightning_modules.backbones.interface import Samples, Sampling, ValueHead


class Decoder(Protocol):
    """Decodes a batch one token at a time over a cache of keys and values."""

    def step(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Read one token of each row, [B]; return logits [B, V] and last hidden states [B, d]."""

    def keep(self, rows: Tensor) -> None:
        """Continue with some of the rows only."""


def sample_responses(
    decoder: Decoder,
    first: Tensor,
    settings: Sampling,
    eos_id: int,
    pad_id: int,
    value_head: ValueHead | None = None,
    never: int | None = None,
) -> Samples:
    """Sample one response for each row; finished rows leave the batch once they are half of it.

    Args:
        decoder: Positioned just before the last token of the decoder's prefix.
        first: That token for each row, int64 [B].
        settings: How to sample.
        eos_id: Token that ends a response.
        pad_id: Token that fills rows up after EOS.
        value_head: Reads the hidden states in which the tokens are drawn.
        never: A token that is drawn again if it comes up; log-probabilities stay the model's.
    """
    limit, temperature = settings
    rows = torch.arange(len(first), device=first.device)
    responses = first.new_full((len(first), limit), pad_id)
    logprobs, entropy, values = torch.zeros(3, len(first), limit, device=first.device)
    live, tokens = torch.ones_like(rows, dtype=torch.bool), first
    for step in range(limit):
        logits, hidden = decoder.step(tokens)
        likelihoods = (logits.float() / temperature).log_softmax(dim=-1)
        chances = likelihoods.exp()
        tokens = draw(
            chances if never is None else chances.index_fill(1, first.new_tensor([never]), 0)
        )

        now = (rows[live], step)
        responses[now] = tokens[live]
        logprobs[now] = likelihoods.gather(1, tokens[:, None])[live, 0]
        entropy[now] = entropy_of(likelihoods)[live]
        if value_head is not None:
            values[now] = value_head(hidden)[live]

        live = live & (tokens != eos_id)
        count = int(live.sum())
        if count == 0:
            break
        if 2 * count <= len(live):
            kept = live.nonzero().squeeze(1)
            decoder.keep(kept)
            rows, tokens, live = rows[kept], tokens[kept], live[kept]
    width = step + 1
    return Samples(*(each[:, :width] for each in (responses, logprobs, entropy, values)))


def draw(chances: Tensor) -> Tensor:
    """Draw an index from each row of probabilities [B, V], which need not sum to 1: int64 [B].

    On a CPU ``torch.multinomial`` draws a random number for every token of the vocabulary, on one
    core. This draws one for each row and inverts the cumulative distribution, in fp64 so that rare
    tokens keep their share of the sum.
    """
    if chances.device.type != "cpu":
        return torch.multinomial(chances, 1).squeeze(1)
    cumulative = chances.double().cumsum(dim=-1)
    numbers = torch.rand(len(chances), 1, dtype=torch.float64) * cumulative[:, -1:]
    drawn = torch.searchsorted(cumulative, numbers, right=True).squeeze(1)
    return drawn.clamp_max(chances.shape[-1] - 1)  # a product may round up to the sum


def entropy_of(logprobs: Tensor) -> Tensor:
    """Entropy in nats of distributions given by log-probabilities [..., V]: [...]."""
    return -(logprobs.exp() * logprobs).sum(dim=-1)
