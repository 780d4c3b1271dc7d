"""Weights that DeepSpeed's ZeRO-3 divides, and what its engines keep of a weight.

Each layer gathers its weights as it comes to it, and gives them free behind (Rajbhandari et al.
2020, "ZeRO", arXiv 1910.02054, section 5). Nothing here imports DeepSpeed unless a weight is its.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

AT_ONCE = 50_000_000
"""Numbers that travel at once: 200 MB in fp32, on each device."""


def is_divided(weight: Tensor) -> bool:
    """Whether a weight is divided by stage 3, be it whole at the moment."""
    return hasattr(weight, "ds_id")


def is_away(weight: Tensor) -> bool:
    """Whether a weight is divided by stage 3, and not whole at the moment."""
    return is_divided(weight) and weight.ds_status.name != "AVAILABLE"  # type: ignore[attr-defined]


def shape_of(weight: Tensor) -> torch.Size:
    """Give the whole shape of a weight, be it divided."""
    return getattr(weight, "ds_shape", weight.shape)


def take_share(weight: Any) -> Tensor:
    """Give this rank's share of a weight that stage 3 divides, without what pads it: [n]."""
    rank, size = torch.distributed.get_rank(), weight.ds_tensor.numel()
    return weight.ds_tensor[: max(0, min(size, weight.ds_numel - rank * size))]


def gather_weight(weight: Any) -> Tensor:
    """Give a copy of a whole weight that stage 3 divides; all ranks have to ask for it."""
    from deepspeed.runtime.zero import GatheredParameters

    with GatheredParameters([weight], enabled=is_away(weight)):
        return weight.detach().clone()


@torch.no_grad()
def put_weight(weight: Tensor, value: Tensor) -> None:
    """Set a weight, whole or divided, and what an engine has of it; all ranks with the same."""
    if not is_divided(weight):
        weight.copy_(value)
    if is_divided(weight) or hasattr(weight, "_hp_mapping"):
        put_share(weight, value)


def put_share(weight: Any, value: Tensor, name: str | None = None) -> None:
    """Set a weight, or a part of its state by its name, in an engine."""
    from deepspeed.utils import (
        safe_set_full_fp32_param,
        safe_set_full_optimizer_state,
        safe_set_local_fp32_param,
        safe_set_local_optimizer_state,
    )

    if not is_divided(weight):
        if name is None:
            safe_set_full_fp32_param(weight, value)
        else:
            safe_set_full_optimizer_state(weight, value, name)
        return
    size = weight.ds_tensor.numel()
    # Its function for whole values knows nothing of what pads a weight that ranks share unevenly.
    padded = nn.functional.pad(value.flatten(), (0, size * _ranks() - value.numel()))
    share = padded.narrow(0, torch.distributed.get_rank() * size, size)
    if name is not None:
        safe_set_local_optimizer_state(weight, share, name)
        return
    safe_set_local_fp32_param(weight, share)
    weight.ds_tensor.copy_(share)
    if not is_away(weight):
        weight.data.copy_(value)


def _ranks() -> int:
    return torch.distributed.get_world_size()


@contextmanager
def gathered(weights: Iterable[Any]) -> Iterator[None]:
    """Have weights that stage 3 divides whole on every rank inside a ``with`` block.

    All ranks have to enter it and to leave it; in between they need not do the same, for layers
    ask nobody for anything. Blocks may be inside one another. The weights may not be changed.
    """
    divided = [weight for weight in dict.fromkeys(weights) if is_divided(weight)]
    if not divided:
        yield
        return
    from deepspeed.runtime.zero import GatheredParameters

    with without_hooks(divided[0]._z3_optimizer.parameter_offload):
        away = [weight for weight in divided if is_away(weight)]
        blocks = [GatheredParameters(part) for part in _cut(away)]
        stack = ExitStack()
        with torch.inference_mode(False):  # whose tensors have no gradients
            for block in blocks:
                stack.enter_context(block)
        try:
            yield
        finally:
            with torch.inference_mode(False):
                stack.close()


def make_whole_again(models: nn.Module) -> None:
    """Put whole weights in the place of those that stage 3 divides; all ranks take part."""
    new: dict[int, nn.Parameter] = {}
    for module in models.modules():
        module.__dict__.pop("compute", None)
        for name, weight in list(module._parameters.items()):
            if weight is None or not is_divided(weight):
                continue
            if id(weight) not in new:
                new[id(weight)] = nn.Parameter(gather_weight(weight), weight.requires_grad)
            module._parameters[name] = new[id(weight)]


def _cut(weights: list[Any]) -> Iterator[list[Any]]:
    """Cut a list of weights into parts that are gathered at once: what travels is there twice."""
    part: list[Any] = []
    size = 0
    for weight in weights:
        if part and size + weight.ds_numel > AT_ONCE:
            yield part
            part, size = [], 0
        part.append(weight)
        size += weight.ds_numel
    if part:
        yield part


@contextmanager
def without_hooks(offload: Any) -> Iterator[None]:
    """Keep stage 3 from gathering and giving free what modules use inside a ``with`` block.

    As TRL does for generation: its hooks are taken off, and put on again.
    """
    if not offload.forward_hooks:  # it is inside of such a block already
        yield
        return
    with torch.inference_mode(False):
        offload.partition_all_parameters()
    for hook in (*offload.forward_hooks, *offload.backward_hooks):
        hook.remove()
    offload.forward_hooks, offload.backward_hooks = [], []
    try:
        yield
    finally:
        offload._register_deepspeed_module(offload.module)
