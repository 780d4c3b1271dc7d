"""Attention from its definition where torch's CPU kernel is slow: with dropout, or one query."""

from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.models.t5.modeling_t5 import T5PreTrainedModel

from lightning_modules.acceleration.dropout import drop

_combined: Any = WeakTensorKeyDictionary()
"""Position biases with masks added, each with a reference to its mask."""

ATTENTION = "sdpa_or_definition"
"""Name under which transformers knows :func:`attend`."""


def use_attention(model: nn.Module) -> None:
    """Let the T5 models in a model compute attention by :func:`attend`."""
    for part in model.modules():
        if isinstance(part, T5PreTrainedModel):
            part.set_attn_implementation(ATTENTION)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute attention as transformers' ``sdpa`` does.

    torch's fused CPU kernel keeps no scores in memory, but has no dropout, and is slow in bf16 and
    for the single query of a decoding step. These use the definition here, with fp32 scores as
    there.

    Args:
        module: The attention layer.
        query: [B, heads, Q, d].
        key: [B, heads, K, d].
        value: [B, heads, K, d].
        attention_mask: [B or 1, 1, Q, K], True (or 0.0) where to attend; None is everywhere, or
            up to the query's position if the layer is causal.
        dropout: Share of the attention weights that is dropped.
        scaling: Factor of the scores; None is d ** -0.5.
        position_bias: [B or 1, heads, Q, K], added to the scores.
        **kwargs: For ``sdpa``.

    Returns:
        [B, Q, heads, d], and None for the weights.
    """
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    fused = dropout == 0 and query.shape[2] > 1 and value.dtype == torch.float32
    both = position_bias is not None and attention_mask is not None
    if fused and both and not position_bias.requires_grad:
        attention_mask, position_bias = _combine(position_bias, attention_mask), None
    if fused or query.device.type != "cpu":
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling,
            position_bias=position_bias, **kwargs,
        )  # fmt: skip
    causal = kwargs.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    if attention_mask is None and causal:
        ones = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool)
        attention_mask = ones.tril(key.shape[2] - query.shape[2])
    with torch.autocast("cpu", enabled=False):
        scores = torch.matmul(query.float() * scaling, key.float().transpose(2, 3))
        if position_bias is not None:
            scores.add_(position_bias[..., : query.shape[2], : key.shape[2]])
        if attention_mask is not None:
            scores.add_(_additive(attention_mask))
        weights = drop(scores.softmax(-1), dropout).to(value.dtype)
        return torch.matmul(weights, value).transpose(1, 2).contiguous(), None


def _combine(position_bias: Tensor, mask: Tensor) -> Tensor:
    """Add a mask to a position bias once for all layers, which share both."""
    known_mask, known = _combined.get(position_bias, (lambda: None, None))
    if known_mask() is not mask:
        known = position_bias + _additive(mask)
        _combined[position_bias] = ref(mask), known
    return known


def _additive(mask: Tensor) -> Tensor:
    """Turn a bool mask, True where to attend, into what is added to the scores."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape).masked_fill_(~mask, torch.finfo(torch.float32).min)


AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
