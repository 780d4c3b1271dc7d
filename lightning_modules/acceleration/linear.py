"""Linear layers by oneDNN instead of MKL, which is slow on processors other than Intel's."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

LEAST_WORK = 2**22
"""Multiplications in a product that make up for the 20 us that its conversions take."""

_input_gradient = torch.ops.aten.mkldnn_linear_backward_input
_weight_gradient = torch.ops.aten.mkldnn_linear_backward_weights


def use_linear(model: nn.Module) -> None:
    """Replace the ``nn.Linear`` modules of a model; the parameters stay the same objects."""
    if not torch.backends.mkldnn.is_available():
        return
    for name, layer in list(model.named_modules()):
        if type(layer) is nn.Linear:
            model.set_submodule(name, FastLinear(layer))


class FastLinear(nn.Linear):
    """``nn.Linear`` by oneDNN where a product of fp32 matrices on a CPU is large enough.

    Args:
        layer: The layer whose parameters it uses.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        self.train(layer.training)

    def forward(self, input: Tensor) -> Tensor:
        """Map [..., in_features] to [..., out_features]."""
        if input.numel() * self.out_features < LEAST_WORK or not self._suits(input):
            return F.linear(input, self.weight, self.bias)
        return _Linear.apply(input, self.weight, self.bias)

    def _suits(self, input: Tensor) -> bool:
        kinds = {(each.device.type, each.dtype) for each in (input, self.weight)}
        return kinds == {("cpu", torch.float32)} and not torch.is_autocast_enabled("cpu")


class _Linear(torch.autograd.Function):
    """``F.linear`` on oneDNN's tensors; it keeps no more for its gradients than ``F.linear``."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        wants_input, wants_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(input if wants_weight else None, weight if wants_input else None)
        ctx.input_shape, ctx.weight_shape = input.shape, weight.shape
        return F.linear(input.to_mkldnn(), weight, bias).to_dense()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        of_input = of_weight = of_bias = None
        packed = gradient.to_mkldnn()
        if weight is not None:
            of_input = _input_gradient(ctx.input_shape, packed, weight).to_dense()
        if input is not None:
            like = gradient.new_empty(ctx.weight_shape)
            of_weight, _ = _weight_gradient(packed, input.to_mkldnn(), like, False)
        if ctx.needs_input_grad[2]:
            of_bias = gradient.flatten(0, -2).sum(dim=0)
        return of_input, of_weight, of_bias
