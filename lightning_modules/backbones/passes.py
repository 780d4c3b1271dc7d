"""What the forward passes of all architectures share: hidden states, a sparing head, scores."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_modules.backbones.interface import TokenScores, ValueHead
from lightning_modules.backbones.sampling import entropy_of


def forward_at(
    model: Any, body: nn.Module, places: Bool[Tensor, "B T"], **arguments: Any
) -> tuple[Float[Tensor, "N V"], Float[Tensor, "N d"]]:
    """Run a model's forward pass, and return logits and last hidden states at N places only.

    Args:
        model: A language model.
        body: The part of it whose output the head reads.
        places: True at N positions of the tokens that the body receives.
        **arguments: Of the model's forward pass.
    """
    with _last_hidden(body) as found, _head_at(model, places):
        logits = model(**arguments, return_dict=True).logits
    return logits if logits.dim() == 2 else logits[places], found[-1][places]


@contextmanager
def _last_hidden(body: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the last hidden states [B, T, d] of a model's body during a forward pass."""
    found: list[Tensor] = []
    hook = body.register_forward_hook(lambda _, __, output: found.append(output[0]))
    try:
        yield found
    finally:
        hook.remove()


@contextmanager
def _head_at(model: Any, places: Tensor) -> Iterator[None]:
    """Let the output head compute [N, V] logits at some places only, instead of [B, T, V].

    The vocabulary makes logits the largest tensor of all. A model whose head does not receive
    [B, T, d] computes all of its logits.

    Args:
        model: A language model.
        places: True at N positions of what the head receives, [B, T].
    """

    def select(_: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        hidden = inputs[0]
        is_usual = hidden.dim() == 3 and hidden.shape[:2] == places.shape
        return (hidden[places], *inputs[1:]) if is_usual else None

    hook = model.get_output_embeddings().register_forward_pre_hook(select)
    try:
        yield
    finally:
        hook.remove()


def token_scores(
    logits: Float[Tensor, "N V"],
    hidden: Float[Tensor, "N d"],
    responses: Int[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    temperature: float,
    value_head: ValueHead | None,
    with_entropy: bool,
) -> TokenScores:
    """Score N response tokens by what a model says before each of them, with an fp32 softmax.

    Args:
        logits: Before each token that the mask has, in the order of the rows.
        hidden: The last hidden states there.
        responses: Token ids.
        mask: True at y1..EOS.
        temperature: Divides the logits.
        value_head: Reads the hidden states; without one the values are 0.
        with_entropy: Compute the entropy too; otherwise it is 0.
    """
    logits = logits.float() / temperature
    logprobs = -F.cross_entropy(logits, responses[mask], reduction="none")
    entropy = values = torch.zeros_like(logprobs)
    if with_entropy:
        with torch.no_grad():
            entropy = entropy_of(logits.log_softmax(dim=-1))
    if value_head is not None:
        values = value_head(hidden)
    return TokenScores(*(_scatter(each, mask) for each in (logprobs, entropy, values)))


def _scatter(real: Float[Tensor, " N"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """Place the values of the N real tokens where the mask has them, and 0 elsewhere."""
    return real.new_zeros(mask.shape).masked_scatter(mask, real)
