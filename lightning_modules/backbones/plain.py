"""The model's plain forward pass, written without the scorer: what the gate compares it with."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_modules.backbones.interface import Prompts


@torch.no_grad()
def plain_distribution(
    model: Any,
    prompts: Prompts,
    responses: Int[Tensor, "B T"],
    prefix: list[int],
    temperature: float = 1.0,
) -> Float[Tensor, "B T V"]:
    """Return log pi(. | y_<t) by ``model(input_ids, attention_mask, decoder_input_ids).logits``.

    Args:
        model: A transformers or PEFT model; for an adapter, with the wanted one active.
        prompts: One for each response.
        responses: Token ids after the decoder's prefix, [B, T].
        prefix: Tokens that every decoder input starts with, the start token first.
        temperature: Divides the logits.
    """
    rows = [prefix + tokens[:-1] for tokens in responses.tolist()]
    logits = model(
        input_ids=prompts.input_ids,
        attention_mask=prompts.attention_mask,
        decoder_input_ids=torch.tensor(rows, device=responses.device),
    ).logits
    return (logits[:, len(prefix) - 1 :].float() / temperature).log_softmax(dim=-1)
