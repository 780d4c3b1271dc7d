"""Divided models and tensors: all that the rest of the program knows of FSDP2.

With FSDP2 each block of a model, and what is left of the model as its root, is a unit whose weights
are whole only while it computes (Zhao et al. 2023, "PyTorch FSDP", arXiv 2304.11277; the form that
torch calls ``fully_shard``). Generation, rollouts and evaluations
run on whole weights (:func:`whole`): gathered once for all of their passes, and not once a token.
So a rank decodes at its own pace and waits for nobody. :mod:`lightning_modules.strategies` has what
a Trainer needs.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.modeling_layers import GradientCheckpointingLayer

Result = TypeVar("Result")


def find_blocks(model: nn.Module) -> list[nn.Module]:
    """Give the transformer blocks of a model, by the class that transformers makes them of."""
    return [part for part in model.modules() if isinstance(part, GradientCheckpointingLayer)]


def divide(model: nn.Module, mesh: Any, device: torch.device) -> None:
    """Divide a model that is the same on all ranks but for what was drawn at random: rank 0 counts.

    Args:
        model: On the CPU; its units go to the device one after the other.
        mesh: The ranks.
        device: This rank's.
    """
    for unit in (*find_blocks(model), model):
        unit.to(device)
        for weight in unit.parameters():
            if not isinstance(weight, DTensor):
                torch.distributed.broadcast(weight.data, src=0)
        fully_shard(unit, mesh=mesh, reshard_after_forward=True)
    model.compute = lambda work: work()  # type: ignore[assignment]
    register_fsdp_forward_method(model, "compute")
    # The unit that computes first is taken for the root: here that is not left to chance.
    as_forward(model, lambda: None)


def is_sharded(model: nn.Module) -> bool:
    """Whether some weights of a model are divided at the moment."""
    return any(isinstance(weight, DTensor) for weight in model.parameters())


def has_shares(model: nn.Module) -> bool:
    """Whether a model is one that is divided, be it whole at the moment."""
    return any(isinstance(part, FSDPModule) for part in model.modules())


def as_forward(model: Any, work: Callable[[], Result]) -> Result:
    """Do some work with the parts of a divided model as if it were the model's ``forward``.

    With FSDP2, embeddings and output head are whole in it, blocks while they compute. The gradients
    of what comes out of it find their way back.

    Args:
        model: Divided or not.
        work: Gives tensors, or tuples of them.
    """
    compute: Callable[[Callable[[], Result]], Result] | None = model.__dict__.get("compute")
    return work() if compute is None else compute(work)  # which whoever divided it gave it


@contextmanager
def whole(module: nn.Module) -> Iterator[None]:
    """Have all weights of a module whole, on every rank, inside a ``with`` block.

    All ranks have to enter it and to leave it; in between they need not do the same. The weights
    may not be changed in it.
    """
    units = [part for part in module.modules() if isinstance(part, FSDPModule)]
    if not units:
        yield
        return
    # What is gathered is kept for the next time: tensors of inference mode have no gradients then.
    with torch.inference_mode(False), torch.no_grad():
        for unit in units:
            unit.set_reshard_after_forward(False, recurse=False)
            unit.unshard()
    try:
        yield
    finally:
        for unit in units:
            unit.set_reshard_after_forward(True, recurse=False)
            unit.reshard()


def full(value: Tensor) -> Tensor:
    """Give a tensor that is divided among the ranks as a whole one; others as they are."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def are_finite(weights: Iterable[Tensor]) -> bool:
    """Whether all of these weights are finite, on all ranks that share them."""
    return all(bool(full(weight.isfinite().all())) for weight in weights)


def spread(value: Tensor, weight: Tensor) -> Tensor:
    """Divide a tensor that belongs to a weight as that is divided; this rank's share of it.

    Args:
        value: On all ranks, whole. One of another shape than the weight, such as an optimizer's
            count of steps, stays as it is.
        weight: The weight.
    """
    if not isinstance(weight, DTensor) or value.shape != weight.shape:
        return value
    mesh = weight.device_mesh
    value = value.to(weight.device)
    return distribute_tensor(value, mesh, weight.placements, src_data_rank=None)
