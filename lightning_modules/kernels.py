"""The same training step in less time: dropout, attention, GELU and Adam with fewer passes.

On a CPU an encoder-decoder of this size spends a third of an fp32 step outside matrix products, and
more than half of a bf16 one. docs/performance.md says what each part here gives.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.activations import NewGELUActivation
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lightning_modules.linear import QuickLinear

ATTENTION = "sdpa_or_quick_dropout"
"""Name under which transformers knows :func:`attend`."""

_LEVELS = 2**16


def quicken(model: nn.Module) -> nn.Module:
    """Exchange dropout, GELU and attention of a model, in place, for the quicker ones here.

    They have no weights: what is saved and loaded stays as it was.
    """
    for parent in list(model.modules()):
        if isinstance(parent, PreTrainedModel) and parent.config._attn_implementation == "sdpa":
            parent.set_attn_implementation(ATTENTION)
        for name, child in parent.named_children():
            if type(child) is nn.Dropout and not child.inplace:
                setattr(parent, name, QuickDropout(child.p).train(child.training))
            elif type(child) is NewGELUActivation:
                # The same formula (Hendrycks and Gimpel 2016, the approximation by tanh) in one
                # pass over memory where that module takes eight.
                setattr(parent, name, nn.GELU(approximate="tanh"))
            elif type(child) is nn.Linear:
                child.__class__ = QuickLinear  # the same object: its weights may be tied, or hooked
    return model


class QuickDropout(nn.Dropout):
    """``nn.Dropout`` by :func:`drop`."""

    def forward(self, input: Tensor) -> Tensor:
        """Drop elements in training mode."""
        return drop(input, self.p) if self.training else input


def drop(input: Tensor, rate: float) -> Tensor:
    """Set elements to 0 with probability ``rate`` and scale the others so that the mean stays.

    On a CPU torch draws one Bernoulli number after the other, on one core: a fifth of a LoRA step.
    Here four elements share a draw, 16 random bits each. So the probability there is a multiple of
    2**-16 (0.100006 for 0.1), and the scale belongs to that multiple.

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
    # 1 where kept, else 0; without a comparison, as bool tensors are slow to turn into numbers.
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
    """Compute attention as transformers' ``sdpa`` does, quicker on a CPU.

    There torch has a fused kernel, which keeps no scores in memory. It knows no dropout, and is
    slow in bf16 and for the one query of a decoding step: these go by the definition here. The
    scores are fp32 as there, whatever the precision of the run.

    Args:
        module: The attention layer.
        query: [B, heads, Q, d].
        key: [B, heads, K, d].
        value: [B, heads, K, d].
        attention_mask: [B or 1, 1, Q, K], True (or 0.0) where to attend; None is everywhere, or
            nowhere ahead if the layer is causal.
        dropout: Share of the attention weights that is dropped.
        scaling: Factor of the scores; None is d ** -0.5.
        position_bias: [B or 1, heads, Q, K], added to the scores.
        **kwargs: For ``sdpa``.

    Returns:
        [B, Q, heads, d], and None for the weights.
    """
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    grouped = getattr(module, "num_key_value_groups", 1) > 1
    fused = dropout == 0 and query.shape[2] > 1 and value.dtype == torch.float32
    if fused or query.device.type != "cpu" or grouped:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling,
            position_bias=position_bias, **kwargs,
        )  # fmt: skip
    causal = kwargs.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    if attention_mask is None and causal:
        ones = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool)
        attention_mask = ones.tril(key.shape[2] - query.shape[2])
    return weigh(query, key, value, scaling, dropout, position_bias, attention_mask), None


def weigh(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, dropout: float,
    position_bias: Tensor | None = None, mask: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Compute attention from its definition, [B, Q, heads, d]; the arguments are attend's.

    Of a position bias for longer rows the head is taken.
    """
    with torch.autocast("cpu", enabled=False):
        query = query.float() if scaling == 1 else query.float() * scaling
        scores = torch.matmul(query, key.float().transpose(2, 3))
        if position_bias is not None:
            scores.add_(position_bias[..., : query.shape[2], : key.shape[2]])
        if mask is not None:
            scores.add_(_additive(mask))
        weights = drop(scores.softmax(-1), dropout).to(value.dtype)
        return torch.matmul(weights, value).transpose(1, 2).contiguous()


def _additive(mask: Tensor) -> Tensor:
    """Turn a bool mask, True where to attend, into what is added to the scores."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape).masked_fill_(~mask, torch.finfo(torch.float32).min)


AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def fuse(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Let Adam update each weight in one pass, unless its settings say ``fused`` or ``foreach``.

    Set after construction on purpose: an Adam built with ``fused=True`` claims to undo loss
    scaling by itself, for which Lightning refuses to clip its gradients in bf16, where there is no
    loss scaling.
    """
    unsaid = {"fused": None, "foreach": None, "differentiable": False}
    ours = {name: optimizer.defaults.get(name) for name in unsaid}
    devices = {p.device.type for group in optimizer.param_groups for p in group["params"]}
    if isinstance(optimizer, torch.optim.Adam) and ours == unsaid and devices <= {"cpu", "cuda"}:
        for group in optimizer.param_groups:
            group["fused"] = True
    return optimizer
