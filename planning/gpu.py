"""What a GPU's kernels keep for the backward pass, reckoned on tensors without data of a CPU.

Without a GPU torch cannot run a backward pass on its tensors, not even on ones without data.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers import PreTrainedModel

from lightning_modules.kernels import ATTENTION, QuickDropout
from lightning_modules.linear import QuickLinear


def slow_down(model: nn.Module) -> None:
    """Take back what ``quicken`` exchanges for a CPU's sake, and passes by on a GPU."""
    for parent in list(model.modules()):
        if isinstance(parent, PreTrainedModel) and parent.config._attn_implementation == ATTENTION:
            parent.set_attn_implementation("sdpa")
        for name, child in parent.named_children():
            kind = type(child)
            if isinstance(child, QuickDropout):
                setattr(parent, name, nn.Dropout(child.p).train(child.training))
            elif kind is QuickLinear:
                child.__class__ = nn.Linear


@contextmanager
def fused_kernels() -> Iterator[None]:
    """Let what runs inside keep for its backward pass what a GPU's kernels keep.

    There dropout keeps one byte an element, on a CPU its noise in full. And there one kernel does
    the attention (memory-efficient attention, which takes T5's additive bias) and keeps its inputs
    and its output; on a CPU attention with a trained bias or with dropout keeps the weights of all
    heads too, several times over.

    The functions are exchanged by name: a TorchFunctionMode is off in a backward pass, in which
    checkpointed blocks are computed again.
    """
    attention, dropout = F.scaled_dot_product_attention, F.dropout
    F.scaled_dot_product_attention = _fused_attention  # type: ignore[assignment]
    F.dropout = _fused_dropout
    try:
        yield
    finally:
        F.scaled_dot_product_attention, F.dropout = attention, dropout


def _fused_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **_: Any
) -> Tensor:
    if torch.is_autocast_enabled(query.device.type):  # it is on autocast's list of bf16 operations
        kind = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(kind), key.to(kind), value.to(kind)
        attn_mask = None if attn_mask is None else attn_mask.to(kind)
    return _FusedAttention.apply(query, key, value, attn_mask)


class _FusedAttention(torch.autograd.Function):
    """Attention of the right shapes: softmax(q k' + mask) v is not computed."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        output = torch.empty_like(query)
        normaliser = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, mask, output, normaliser)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors[:4]
        wanted = zip(inputs, ctx.needs_input_grad, strict=True)
        return tuple(torch.empty_like(tensor) if needed else None for tensor, needed in wanted)


def _fused_dropout(
    input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    if not training or p == 0:
        return input
    return torch.native_dropout(input, p, True)[0]
