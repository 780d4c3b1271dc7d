"""Keys and values of the frozen cross-attention, computed once a prompt.

A decoder layer projects the encoder's states to keys and values. Where the projection is frozen and
the states are those of all passes, so are the products: policy and reference, sampler and update,
and all samples of a prompt can share them. What an adapter adds to them is computed in each pass.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from transformers.models.t5.modeling_t5 import T5Stack

from lightning_modules.linear import QuickLinear


def find_projections(decoder: Any) -> list[QuickLinear]:
    """List the frozen layers of a T5's decoder that read the encoder's states, below adapters."""
    if not isinstance(decoder, T5Stack):
        return []
    crossing = [block.layer[1].EncDecAttention for block in decoder.block]
    layers = [getattr(each, name) for each in crossing for name in ("k", "v")]
    plain = [getattr(layer, "base_layer", layer) for layer in layers]
    return [
        layer for layer in plain if type(layer) is QuickLinear and not layer.weight.requires_grad
    ]


def project(decoder: Any, hidden: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
    """Give what each of :func:`find_projections` makes of encoder states: [P, S, inner], 0 at pads.

    Args:
        decoder: The decoder.
        hidden: Encoder states, [P, S, d].
        mask: [P, S], 1 at real tokens; no time goes into the others.
    """
    real = mask.bool()
    found = []
    for layer in find_projections(decoder):
        product = layer(hidden[real])
        padded = product.new_zeros(*mask.shape, product.shape[-1])
        padded[real] = product
        found.append(padded)
    return tuple(found)


@contextmanager
def projected(decoder: Any, products: Sequence[Tensor]) -> Iterator[None]:
    """Let the decoder take these products for its own inside a ``with`` block.

    Args:
        decoder: The decoder.
        products: What :func:`project` gave, of the rows that it attends to; none changes nothing.
    """
    layers = find_projections(decoder) if products else []
    try:
        for layer, product in zip(layers, products, strict=True):
            layer.known = product
        yield
    finally:
        for layer in layers:
            layer.known = None
