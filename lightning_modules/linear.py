"""Linear layers by oneDNN on a CPU, and weights laid out beforehand where many steps reuse them.

In fp32 torch hands matrix products to MKL, which on processors other than Intel's runs at half of
their width or less: 115 against 260 GFLOP/s on an AMD EPYC with AVX512. oneDNN, which torch brings
too and uses in bf16, takes what there is. docs/performance.md has the figures.
"""

import os
from collections.abc import Iterable, Iterator, MutableMapping
from contextlib import ExitStack, contextmanager
from typing import Any, TypeGuard

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

AVAILABLE = torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()
"""Whether this torch has both, so that there is a choice."""

for _cache in ("DNNL_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    # oneDNN and torch each keep a kernel for every shape that they have met, 1,024 of them, of up
    # to a megabyte. Batches have any number of tokens; a step needs the shapes of its own few.
    os.environ.setdefault(_cache, "64")

LEAST_WORK = 2**22
"""Multiplications of a product from which on oneDNN's longer way in (10 us) is worth it."""

LEAST_WEIGHTS = 2**16
"""Weights of a layer from which on laying them out is worth it."""


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
    known: Tensor | None = None
    """The output, where it has been computed before; see :mod:`lightning_modules.ppo.crossing`."""

    def forward(self, input: Tensor) -> Tensor:
        """Map [..., in_features] to [..., out_features]."""
        if self.known is not None:
            return self.known
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
    taken. The weights may not change inside the block. On a CPU in fp32 the update of a plain LoRA
    is in the copy: two products less a layer. In bf16 it is not, for most of it would be rounded
    away.

    Args:
        *modules: Their layers of :class:`QuickLinear`; others, and small ones, stay as they are.
        rows: Rows of most of the products.
        copies: The copies by layer, where they have to be at the same addresses every time, and
            nothing but plain tensors will do; those that are not there yet are added.
    """
    if torch.is_grad_enabled():
        yield
        return
    layers = [each for module in modules for each in module.modules() if _is_large(each)]
    folds = copies is None and AVAILABLE and not torch.is_autocast_enabled("cpu")
    with ExitStack() as stack:
        updates = stack.enter_context(leave_out_updates(modules)) if folds else {}
        for layer in layers:
            stack.callback(setattr, layer, "packed", None)
            if copies is None:
                layer.packed = _pack(layer, rows, updates.get(layer))
            else:
                layer.packed = _copy(layer, copies)
        yield


def _pack(layer: QuickLinear, rows: int, update: Tensor | None) -> Tensor | None:
    kind = layer.weight.device.type
    mixed = torch.is_autocast_enabled(kind)
    if (kind == "cpu" and not AVAILABLE) or (kind != "cpu" and not mixed):
        return None
    weight = layer.weight.detach()
    weight = weight.to(torch.get_autocast_dtype(kind)) if mixed else weight
    weight = weight if update is None else weight + update
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


def _is_large(layer: nn.Module) -> TypeGuard[QuickLinear]:
    return isinstance(layer, QuickLinear) and layer.weight.numel() >= LEAST_WEIGHTS


@contextmanager
def leave_out_updates(modules: Iterable[nn.Module]) -> Iterator[dict[nn.Module, Tensor]]:
    """Let LoRA layers give their base layer's output alone, inside a ``with`` block.

    Only plain ones do, on large quick layers whose output is not known already.

    Yields:
        What is missing in the weight of each base layer: s B A, of its shape.
    """
    found: dict[nn.Module, Tensor] = {}
    with ExitStack() as stack:
        for layer in (each for module in modules for each in module.modules()):
            if isinstance(layer, LoraLinear) and _is_plain_lora(layer):
                active = [name for name in layer.active_adapters if name in layer.lora_A]
                found[layer.base_layer] = sum(
                    map(layer.get_delta_weight, active), torch.tensor(0.0)
                )
                stack.callback(setattr, layer, "merged_adapters", layer.merged_adapters)
                layer.merged_adapters = active  # by which PEFT decides whether to add it
        yield found


def _is_plain_lora(layer: LoraLinear) -> bool:
    base = layer.base_layer
    return (
        _is_large(base)
        and base.weight.is_cpu
        and base.known is None
        and not (layer.merged or layer.disable_adapters or layer.lora_variant)
        and not any(layer.lora_bias.values())
        and any(name in layer.lora_A for name in layer.active_adapters)
    )
