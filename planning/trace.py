"""Count the bytes of the tensors that live at each moment of a computation done without data.

The computation is the real one, operation by operation, on torch's fake tensors: they have a shape,
a type and a device and no content, so a model of any size costs seconds and no memory. What is
counted is therefore what the code does, whatever is in it: dropout masks, attention weights, bf16
copies under autocast, what autograd keeps for the backward pass and what checkpointing does not.

Not seen are buffers inside one operation, and what an allocator keeps beyond what it
has handed out.
"""

import contextlib
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_iter

from planning.parts import OTHER

_ATEN = torch.ops.aten
_NUMBER = _ATEN._local_scalar_dense.default
_NONZERO = _ATEN.nonzero.default
_SUMS = (_ATEN.sum.default, _ATEN.sum.dim_IntList)
_PARTS = (_ATEN.max.default, _ATEN.unbind.int, _ATEN.select.int)


class LiveBytes(FakeTensorMode):
    """Makes every tensor inside a ``with`` block one of no content, and counts their bytes.

    A storage is counted once however many tensors view it, from the operation that made it until
    the last of them is gone. The bytes are kept by parts, as they are now and as they were at the
    peak.

    Where Python asks a tensor for a number, there is none, and it is given the one that takes most
    memory: of a mask all elements are set and a row is as long as the tensor is wide, but a
    question for a truth is denied, for masks are left out where nothing is masked. Optimizers,
    which ask for a floating-point number, are given 1.

    Args:
        classify: Names the part of a new tensor that an operation made; None counts them all as
            :data:`OTHER`.
    """

    def __init__(
        self, classify: Callable[[Tensor, Any], str] = lambda tensor, made_by: OTHER
    ) -> None:
        super().__init__()
        self.classify = classify
        self.now: Counter[str] = Counter()
        self.total = 0
        self.peak: Counter[str] = Counter()
        self._peak_total = 0
        self._parts: dict[int, str] = {}
        self._depth = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Work out the shape of one operation's output, and count it."""
        if func is _NUMBER:
            return _answer(args[0])
        if func is _NONZERO:
            with self:
                return torch.empty(args[0].numel(), args[0].dim(), dtype=torch.long)
        self._depth += 1
        try:
            output = super().__torch_dispatch__(func, types, args, kwargs)
        finally:
            self._depth -= 1
        if self._depth == 0:  # not what working it out made in passing
            for tensor in tree_iter(output):
                if isinstance(tensor, Tensor):
                    self._count(tensor, made_by=func)
            _remember_most(func, args, output)
        return output

    def name(self, part: str, tensors: Iterable[Tensor | None]) -> None:
        """Count tensors under a part, whether they were counted before or not."""
        for tensor in tensors:
            if not isinstance(tensor, Tensor):
                continue
            key, size = _identify(tensor)
            if key in self._parts:
                self.now[self._parts[key]] -= size
                self.now[part] += size
                self._parts[key] = part
            else:
                self._count(tensor, part)

    @contextlib.contextmanager
    def watch(self) -> Iterator[Counter[str]]:
        """Find the peak of what runs inside a ``with`` block; the counter is filled at its end."""
        found: Counter[str] = Counter()
        self.peak, self._peak_total = self.now.copy(), self.total
        yield found
        found.update(self.peak)

    def _count(self, tensor: Tensor, part: str | None = None, made_by: Any = None) -> None:
        key, size = _identify(tensor)
        if key in self._parts or size == 0:
            return
        part = part or self.classify(tensor, made_by)
        self._parts[key] = part
        self.now[part] += size
        self.total += size
        weakref.finalize(tensor.untyped_storage(), self._forget, key, size)
        if self.total > self._peak_total:
            self.peak, self._peak_total = self.now.copy(), self.total

    def _forget(self, key: int, size: int) -> None:
        self.now[self._parts.pop(key)] -= size
        self.total -= size


def _identify(tensor: Tensor) -> tuple[int, int]:
    """Give the identity of a tensor's storage, and its bytes."""
    storage = tensor.untyped_storage()
    return storage._cdata, storage.nbytes()


def _answer(tensor: Any) -> float | int | bool:
    if tensor.dtype == torch.bool:
        return False
    return 1.0 if tensor.dtype.is_floating_point else getattr(tensor, "most", 1)


def _remember_most(func: Any, args: Sequence[Any], output: Any) -> None:
    """Note on a sum over a mask how many elements went into each, and on its parts likewise."""
    if func in _SUMS and not args[0].dtype.is_floating_point:
        output.most = args[0].numel() // max(1, output.numel())
    elif func in _PARTS and hasattr(args[0], "most"):
        for part in tree_iter(output):
            part.most = args[0].most


def place(model: nn.Module) -> None:
    """Move a model from the meta device to tensors without data, which compute as a CPU's do.

    It is built on the meta device because libraries move and swap the parameters of a new model,
    which tensors without data do not bear. To be called inside :class:`LiveBytes`.
    """
    placed: dict[int, Tensor] = {}

    def put(tensor: Tensor) -> Tensor:
        if id(tensor) not in placed:
            empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
            if isinstance(tensor, nn.Parameter):
                empty = nn.Parameter(empty, requires_grad=tensor.requires_grad)
            placed[id(tensor)] = empty
        return placed[id(tensor)]  # a shared one stays shared

    for module in model.modules():
        # PEFT keeps the numbers of its virtual tokens in a plain dict.
        for store in [value for value in vars(module).values() if isinstance(value, dict)]:
            for name, value in store.items():
                if isinstance(value, Tensor):
                    store[name] = put(value)
