"""Linear layers by oneDNN on a CPU, and weights laid out beforehand where many steps reuse them.

In fp32 torch hands matrix products to MKL, which on processors other than Intel's runs at half of
their width or less: 115 against 260 GFLOP/s on an AMD EPYC with AVX512. oneDNN, which torch brings
too and uses in bf16, takes what there is. docs/performance.md has the figures.
"""

from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

AVAILABLE = torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()
"""Whether this torch has both, so that there is a choice."""

LEAST_WORK = 2**22
"""Multiplications of a product from which on oneDNN's longer way in (10 us) is worth it."""


def product(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute x W^T + b by oneDNN, [..., N]; this has no gradient.

    Args:
        input: x, [..., K].
        weight: W, [N, K] of any strides; or what :func:`prepacked` made of it.
        bias: b, [N].
    """
    return torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    """:func:`product` with its gradients."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # For a frozen weight the input is not kept, nor the weight where the input needs nothing.
        wants_input, wants_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(input if wants_weight else None, weight if wants_input else None)
        return product(input, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        rows = gradient.flatten(0, -2)
        return (
            None if weight is None else product(gradient, weight.t()),
            None if input is None else product(rows.t(), input.flatten(0, -2).t()),
            rows.sum(dim=0) if ctx.needs_input_grad[2] else None,
        )


class QuickLinear(nn.Linear):
    """``nn.Linear`` by oneDNN in fp32 on a CPU; elsewhere, and for small products, as it is."""

    packed: Tensor | None = None

    def forward(self, input: Tensor) -> Tensor:
        """Map [..., in_features] to [..., out_features]."""
        if self.packed is not None:
            bias = None if self.bias is None else self.bias.to(self.packed.dtype)
            by = product if self.packed.is_mkldnn else F.linear
            return by(input.to(self.packed.dtype), self.packed, bias)
        worth = input.is_cpu and input.dim() > 1 and input.numel() * self.out_features >= LEAST_WORK
        if not (worth and AVAILABLE and self._is_plain(input)):
            return F.linear(input, self.weight, self.bias)
        if torch.is_grad_enabled():
            return _Linear.apply(input, self.weight, self.bias)
        return product(input, self.weight, self.bias)

    def _is_plain(self, input: Tensor) -> bool:
        """Whether it is a product of fp32 matrices on a CPU."""
        kinds = {(each.device.type, each.dtype) for each in (input, self.weight)}
        return kinds == {("cpu", torch.float32)} and not torch.is_autocast_enabled("cpu")


@contextmanager
def prepacked(
    *modules: nn.Module, rows: int, copies: MutableMapping[nn.Module, Tensor] | None = None
) -> Iterator[None]:
    """Lay out the weights of quick layers for products with few rows, inside a ``with`` block.

    A decoding step multiplies a few rows by every weight, so that its time goes into reading the
    weights: on a CPU that is quicker in the order in which the kernel wants them
    (docs/performance.md), and under bf16's autocast anywhere if they are bf16 already, which
    otherwise every step makes of fp32. It costs a copy of the weights, and no gradient can be
    taken. The weights may not change inside the block.

    Args:
        *modules: Their layers of :class:`QuickLinear`; others stay as they are.
        rows: Rows of most of the products.
        copies: The copies by layer, where they have to be at the same addresses every time, and
            nothing but plain tensors will do; those that are not there yet are added.
    """
    layers = {
        layer
        for module in modules
        for layer in module.modules()
        if isinstance(layer, QuickLinear) and not torch.is_grad_enabled()
    }
    try:
        for layer in layers:
            layer.packed = _pack(layer, rows) if copies is None else _copy(layer, copies)
        yield
    finally:
        for layer in layers:
            layer.packed = None


def _pack(layer: QuickLinear, rows: int) -> Tensor | None:
    kind = layer.weight.device.type
    mixed = torch.is_autocast_enabled(kind)
    if (kind == "cpu" and not AVAILABLE) or (kind != "cpu" and not mixed):
        return None
    weight = layer.weight.detach()
    weight = weight.to(torch.get_autocast_dtype(kind)) if mixed else weight
    return torch.ops.mkldnn._reorder_linear_weight(weight, rows) if kind == "cpu" else weight


def _copy(layer: QuickLinear, copies: MutableMapping[nn.Module, Tensor]) -> Tensor | None:
    """Bring a layer's copy in autocast's precision up to date; without autocast there is none."""
    kind, weight = layer.weight.device.type, layer.weight.detach()
    if not torch.is_autocast_enabled(kind):
        return None
    if (copy := copies.get(layer)) is None:
        copy = copies[layer] = weight.to(torch.get_autocast_dtype(kind))
        # Or a captured graph would read a copy of the copy.
        torch._dynamo.mark_static_address(copy)
    else:
        copy.copy_(weight)
    return copy
