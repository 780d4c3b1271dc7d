"""The least time that a computation can take: its matrix products alone, at their own shapes."""

import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten: Any = torch.ops.aten


class Product(NamedTuple):
    """One matrix product: the function, its operands, and its floating-point operations."""

    function: Callable[..., Any]
    operands: tuple[Tensor, ...]
    flops: int

    def run(self) -> None:
        """Do it."""
        self.function(*self.operands)


class Recorder(TorchDispatchMode):
    """Note every matrix product that is done inside a ``with`` block, forward or backward.

    Weights are kept as they are, so that a replay reads as much memory as the real thing; other
    operands are replaced by random numbers of their shape and strides. Fused attention counts as
    the products it consists of: two forward, and backward four more (what it computes again to save
    memory is its own choice).

    Args:
        weights: Parameters of the models.
    """

    def __init__(self, weights: Iterable[Tensor]) -> None:
        super().__init__()
        self.products: list[Product] = []
        self._weights = {weight.untyped_storage().data_ptr() for weight in weights}
        self._random: dict[tuple[Any, ...], Tensor] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Note a product, and do what was asked."""
        result = function(*args, **(kwargs or {}))
        packet = function.overloadpacket
        if packet in (aten.mm, aten.bmm):
            self._note(packet, args[0], args[1])
        elif packet is aten.addmm:
            self._note(aten.mm, args[1], args[2])
        elif packet is aten._scaled_dot_product_flash_attention_for_cpu:
            query, key, value = args[:3]
            self._attention(query, key, value)
        elif packet is aten._scaled_dot_product_flash_attention_for_cpu_backward:
            _, query, key, value = args[:4]
            self._attention(query, key, value, times=2)
        elif "attention" in str(packet):
            raise NotImplementedError(f"which products {packet} consists of is not known here")
        return result

    def _attention(self, query: Tensor, key: Tensor, value: Tensor, times: int = 1) -> None:
        query, key, value = (each.flatten(0, 1) for each in (query, key, value))
        scores = query.new_empty(query.shape[0], query.shape[1], key.shape[1])
        for _ in range(times):
            self._note(aten.bmm, query, key.transpose(1, 2))
            self._note(aten.bmm, scores, value)

    def _note(self, function: Any, left: Tensor, right: Tensor) -> None:
        flops = 2 * left.numel() * right.shape[-1]
        operands = (self._operand(left, 0), self._operand(right, 1))
        self.products.append(Product(function, operands, flops))

    def _operand(self, tensor: Tensor, place: int) -> Tensor:
        if tensor.untyped_storage().data_ptr() in self._weights:
            return tensor.detach()
        key = (place, tensor.shape, tensor.stride(), tensor.dtype)
        if key not in self._random:
            fresh = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
            self._random[key] = fresh.normal_()
        return self._random[key]


def replay(products: Iterable[Product]) -> float:
    """Do the products one after the other; give the seconds that took."""
    started = time.perf_counter()
    with torch.no_grad():
        for product in products:
            product.run()
    return time.perf_counter() - started
