"""Attention, dropout, GELU and norms with fewer passes over memory on a CPU."""

from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.activations import NewGELUActivation
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.models.t5.modeling_t5 import T5LayerNorm, T5PreTrainedModel

ATTENTION = "sdpa_or_definition"
"""Name under which transformers knows :func:`attend`."""

_LEVELS = 2**16
"""Values of the random numbers of :func:`drop`."""

_combined: Any = WeakTensorKeyDictionary()
"""Position biases with masks added, each with a reference to its mask."""


def use_elementwise(model: nn.Module) -> None:
    """Replace dropout and GELU of a model, and T5's attention and norms."""
    for name, part in list(model.named_modules()):
        if isinstance(part, T5PreTrainedModel):
            part.set_attn_implementation(ATTENTION)
        elif type(part) is nn.Dropout and not part.inplace:
            model.set_submodule(name, FastDropout(part.p).train(part.training))
        elif type(part) is NewGELUActivation:  # Hendrycks and Gimpel 2016, the tanh form
            model.set_submodule(name, nn.GELU(approximate="tanh"))
        elif type(part) is T5LayerNorm:
            model.set_submodule(name, FastNorm(part))


class FastNorm(T5LayerNorm):
    """T5's RMS norm with a gradient written by hand, for fp32 on a CPU.

    Args:
        layer: The layer whose weight it uses.
    """

    def __init__(self, layer: T5LayerNorm) -> None:
        super().__init__(0, layer.variance_epsilon)
        self.weight = layer.weight

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Scale each row [d] to root mean square 1, and multiply by the weight."""
        kinds = {(each.device.type, each.dtype) for each in (hidden_states, self.weight)}
        if kinds == {("cpu", torch.float32)}:
            return _Norm.apply(hidden_states, self.weight, self.variance_epsilon)
        return super().forward(hidden_states)


class _Norm(torch.autograd.Function):
    """y = x r w, with r = (mean(x^2) + eps)^-0.5."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square()
        scale = (square / x.shape[-1] + eps).rsqrt()
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        normed = x * scale
        products = gradient * normed
        of_weight = products.flatten(0, -2).sum(dim=0) if ctx.needs_input_grad[1] else None
        along = (products @ weight)[..., None] / x.shape[-1]
        return (gradient * weight).sub_(normed.mul_(along)).mul_(scale), of_weight, None


class FastDropout(nn.Dropout):
    """``nn.Dropout`` by :func:`drop`."""

    def forward(self, input: Tensor) -> Tensor:
        """Drop elements in training mode."""
        return drop(input, self.p) if self.training else input


def drop(input: Tensor, rate: float) -> Tensor:
    """Set elements to 0 with probability ``rate`` and scale the others so that the mean stays.

    On a CPU torch draws one Bernoulli number after the other, on one core. Here four elements share
    a draw of 64 bits, so the probability is a multiple of 2**-16 (0.100006 for 0.1), and the scale
    belongs to that multiple.

    Args:
        input: Of any shape and floating-point type.
        rate: Probability, in [0, 1].
    """
    dropped = round(rate * _LEVELS)
    if input.device.type != "cpu" or not 0 < dropped < _LEVELS:
        return F.dropout(input, rate)
    count = input.numel()
    draws = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
    bits = draws.view(torch.int16)[:count].view(input.shape)
    least = dropped - _LEVELS // 2  # the lowest value that is kept
    # 1 where kept, else 0, without a comparison: bool tensors are slow to convert to numbers.
    kept = bits.clamp_(least - 1, least).sub_(least - 1)
    return input * kept.to(input.dtype).mul_(_LEVELS / (_LEVELS - dropped))


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
    on_cpu = query.device.type == "cpu"
    fused = dropout == 0 and query.shape[2] > 1 and value.dtype == torch.float32
    # A bias with a gradient is left alone: checkpointed layers must not depend on others.
    is_fixed = position_bias is not None and not position_bias.requires_grad
    if on_cpu and fused and position_bias is not None and is_fixed and attention_mask is not None:
        attention_mask, position_bias = _combine(position_bias, attention_mask), None
    if fused or not on_cpu:
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
        query = query.float() if scaling == 1 else query.float() * scaling
        scores = torch.matmul(query, key.float().transpose(2, 3))
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
