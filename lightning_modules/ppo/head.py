"""The output head by hand; goes with the sampler that uses it."""

from typing import Any

from torch import Tensor


def head_logits(model: Any, hidden: Tensor) -> Tensor:
    """Map the decoder's last hidden states [..., d] to logits [..., V]."""
    if getattr(model.config, "scale_decoder_outputs", False):
        hidden = hidden * model.config.d_model**-0.5
    logits = model.get_output_embeddings()(hidden)
    bias = getattr(model, "final_logits_bias", None)
    return logits if bias is None else logits + bias
