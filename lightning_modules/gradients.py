"""Gradients of an optimizer, whoever holds them: read, measured and clipped in one way for all."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from lightning_modules.sharding import full


class HoldsGradients(ABC):
    """An optimizer whose weights have no gradient of their own: it keeps shares of them itself."""

    @abstractmethod
    def gradients(self) -> list[Tensor]:
        """Give this rank's share of all gradients, to be changed in place.

        Each number is on one rank alone; what is there beside them is 0.
        """

    @abstractmethod
    def sum_over_ranks(self, value: Tensor) -> Tensor:
        """Sum a tensor over the ranks that have shares."""


def gradients(optimizer: Any) -> list[Tensor]:
    """Give the gradients of all weights that an optimizer trains and that have one.

    They may be changed in place, the same way on every rank: each may have a share of them only.
    """
    if isinstance(optimizer, HoldsGradients):
        return optimizer.gradients()
    return [weight.grad for weight in trained_weights(optimizer) if weight.grad is not None]


def gradient_norm(optimizer: Any) -> Tensor:
    """Give the norm of all gradients together, over all ranks that share them: a scalar."""
    norm = torch.nn.utils.get_total_norm(gradients(optimizer))
    if isinstance(optimizer, HoldsGradients):
        return optimizer.sum_over_ranks(norm.square()).sqrt()
    return full(norm)


def clip_by_norm(optimizer: Any, most: float, norm: Tensor) -> None:
    """Scale all gradients so that their norm is at most a value.

    Args:
        optimizer: Whose gradients.
        most: The value.
        norm: Their norm now, as :func:`gradient_norm` gives it.
    """
    if isinstance(optimizer, HoldsGradients):
        factor = (most / (norm + 1e-6)).clamp(max=1.0)  # as torch does it for whole gradients
        for gradient in optimizer.gradients():
            gradient.mul_(factor)
    else:
        torch.nn.utils.clip_grads_with_norm_(trained_weights(optimizer), most, norm)


def clip(optimizer: Any, most: float | None, by: str | None, norm: Tensor) -> None:
    """Clip gradients as the Trainer's settings say.

    Args:
        optimizer: Whose gradients.
        most: ``trainer.gradient_clip_val``; None, or 0, clips nothing.
        by: ``trainer.gradient_clip_algorithm``: by "value", or else by their norm.
        norm: Their norm now.
    """
    if not most:
        return
    if by != "value":
        clip_by_norm(optimizer, most, norm)
        return
    for gradient in gradients(optimizer):
        gradient.clamp_(-most, most)


def trained_weights(optimizer: Any) -> list[Tensor]:
    """Give the weights of all groups of an optimizer, one after the other."""
    return [weight for group in optimizer.param_groups for weight in group["params"]]
