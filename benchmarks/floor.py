"""The least time that a computation can take: its matrix products alone, at their own shapes."""

import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

aten: Any = torch.ops.aten
onednn: Any = torch.ops.mkldnn

UNKNOWN = (aten.baddbmm, aten.addbmm, aten.mv, aten.convolution)
"""Products that no model here has asked for; to be noted once one does."""


class Call(NamedTuple):
    """A function and its arguments."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]


class Product(NamedTuple):
    """One matrix product: as torch does it, as it was done, and its floating-point operations."""

    plain: Call
    own: Call
    flops: int


class Recorder(TorchDispatchMode):
    """Note every matrix product that is done inside a ``with`` block, forward or backward.

    Weights are kept as they are, and so is a copy of each in another precision or another layout,
    so that a replay reads as much memory as the real thing. Other operands are replaced by random
    numbers of their shape and strides, all from the same place: they come from the processor's
    cache more often than the real ones, which makes the floor lower, not higher. Fused attention
    counts as the products it consists of: two forward, and backward four more (what it computes
    again to save memory is its own choice).

    Products are counted as they are done: a product over padding counts, so a computation that
    avoids padding lowers its own floor. Casting or laying out weights is no product.

    Args:
        weights: Parameters of the models.
    """

    def __init__(self, weights: Iterable[Tensor]) -> None:
        super().__init__()
        self.products: list[Product] = []
        self._weights = {weight.untyped_storage().data_ptr(): weight for weight in weights}
        self._pools: dict[tuple[int, torch.dtype], Tensor] = {}
        # The first cast of each weight is kept; later ones are known by their storage, while it is.
        self._casts: dict[tuple[int, torch.dtype], Tensor] = {}
        self._later_casts: dict[int, tuple[StorageWeakRef, Tensor]] = {}
        self._packed: dict[int, tuple[Tensor, Tensor]] = {}

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
        elif packet is onednn._linear_pointwise:
            self._linear(*args[:2])
        elif packet is aten._to_copy:
            self._remember_cast(args[0], result)
        elif packet is onednn._reorder_linear_weight:
            self._packed[id(result)] = (result, args[0])
        elif "attention" in str(packet) or packet in UNKNOWN:
            raise NotImplementedError(f"which products {packet} consists of is not known here")
        return result

    def _attention(self, query: Tensor, key: Tensor, value: Tensor, times: int = 1) -> None:
        query, key, value = (each.flatten(0, 1) for each in (query, key, value))
        scores = query.new_empty(query.shape[0], query.shape[1], key.shape[1])
        for _ in range(times):
            self._note(aten.bmm, query, key.transpose(1, 2))
            self._note(aten.bmm, scores, value)

    def _linear(self, input: Tensor, weight: Tensor) -> None:
        rows = input.flatten(0, -2)
        packed, plain = self._packed.get(id(weight), (None, weight))
        layout = self._operand(plain, 1) if packed is None else packed
        own = Call(onednn._linear_pointwise, (self._operand(rows, 0), layout, None, "none", [], ""))
        self._note(aten.mm, rows, plain.t(), own)

    def _note(self, function: Any, left: Tensor, right: Tensor, own: Call | None = None) -> None:
        flops = 2 * left.numel() * right.shape[-1]
        plain = Call(function, (self._operand(left, 0), self._operand(right, 1)))
        self.products.append(Product(plain, own or plain, flops))

    def _operand(self, tensor: Tensor, place: int) -> Tensor:
        if (kept := self._find_weight(tensor)) is not None:
            view = (tensor.shape, tensor.stride(), tensor.storage_offset())
            return kept.detach().as_strided(*view)
        extent = 1 + sum(
            (n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True)
        )
        pool = self._pools.get((place, tensor.dtype))
        if pool is None or len(pool) < extent:
            # Twice as much as is wanted, for what was given out before stays in memory too.
            pool = torch.empty(2 * extent, dtype=tensor.dtype).normal_()
            self._pools[place, tensor.dtype] = pool
        return pool.as_strided(tensor.shape, tensor.stride())

    def _find_weight(self, tensor: Tensor) -> Tensor | None:
        """Give the weight, or the kept cast of it, that a tensor is a view of."""
        place = tensor.untyped_storage().data_ptr()
        if place in self._weights:
            return self._weights[place]
        storage, kept = self._later_casts.get(place, (None, None))
        return None if storage is None or storage.expired() else kept

    def _remember_cast(self, source: Tensor, result: Tensor) -> None:
        place = source.untyped_storage().data_ptr()
        if place in self._weights and source.shape == self._weights[place].shape:
            kept = self._casts.setdefault((place, result.dtype), result)
            storage = result.untyped_storage()
            self._later_casts[storage.data_ptr()] = (StorageWeakRef(storage), kept)


def replay(products: Iterable[Product], own: bool = False) -> float:
    """Do the products one after the other; give the seconds that took.

    Args:
        products: What was recorded.
        own: Do them by the functions that did them, rather than by torch's ``mm`` and ``bmm``.
    """
    started = time.perf_counter()
    with torch.no_grad():
        for product in products:
            function, arguments = product.own if own else product.plain
            function(*arguments)
    return time.perf_counter() - started
