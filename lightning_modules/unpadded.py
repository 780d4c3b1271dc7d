"""An encoder pass in which no time goes into padding."""

from typing import Any

from torch import Tensor
from transformers.models.t5.modeling_t5 import T5Stack

from lightning_modules.compiling import eagerly
from lightning_modules.kernels import ATTENTION
from lightning_modules.sharding import is_sharded


def encode_rows(encoder: Any, inputs: Tensor, mask: Tensor) -> Tensor:
    """Run an encoder over rows of unequal length; give its last hidden states, 0 at padding.

    Dialogues drawn at random fill two thirds of their batch. On a CPU the rows of a T5 that
    :func:`~lightning_modules.kernels.quicken` has seen are put one behind the other instead: all
    layers but attention look at one token at a time, and attention looks at each row by itself. The
    position bias of a T5 depends on distances only, so that all rows share it. Other encoders add
    positions to their inputs, a GPU had rather wait for padding than for a row at a time, and the
    bias of a model that is divided among ranks is there in its block only; these make a padded
    pass.

    Args:
        encoder: With its adapters active.
        inputs: Embeddings, [P, S, d].
        mask: [P, S], 1 at the real tokens of each row, which stand together.
    """
    quick = isinstance(encoder, T5Stack) and encoder.config._attn_implementation == ATTENTION
    if not quick or inputs.device.type != "cpu" or is_sharded(encoder):
        return encoder(inputs_embeds=inputs, attention_mask=mask).last_hidden_state
    real = mask.bool()
    lengths = real.sum(dim=1).tolist()
    # T5Stack would compute the bias for one long row. Handed to the first layer it is taken.
    bias = encoder.block[0].layer[0].SelfAttention.compute_bias(max(lengths), max(lengths))
    hidden = encoder.dropout(inputs[real][None])
    with eagerly():  # or every set of lengths would be compiled
        for block in encoder.block:
            hidden, bias, _ = block(hidden, None, bias, row_lengths=lengths)
    hidden = encoder.dropout(encoder.final_layer_norm(hidden))
    padded = hidden.new_zeros(inputs.shape)
    padded[real] = hidden[0]
    return padded
