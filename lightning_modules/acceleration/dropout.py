"""Dropout whose four random numbers share one draw."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_LEVELS = 2**16


class FastDropout(nn.Dropout):
    """``nn.Dropout`` by :func:`drop`."""

    def forward(self, input: Tensor) -> Tensor:
        """Drop elements in training mode."""
        return drop(input, self.p) if self.training else input


def use_dropout(model: nn.Module) -> None:
    """Replace the ``nn.Dropout`` modules of a model."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Dropout and not child.inplace:
                setattr(parent, name, FastDropout(child.p).train(child.training))


def drop(input: Tensor, rate: float) -> Tensor:
    """Set elements to 0 with probability ``rate`` and scale the others so that the mean stays.

    On a CPU torch draws one Bernoulli number after the other, on one core. Here four elements share
    a draw of 64 bits, so the probability is a multiple of 2**-16 (0.100006 for 0.1), and the scale
    belongs to that multiple.

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
    # 1 where kept, else 0, without a comparison: bool tensors are slow to convert to numbers.
    kept = bits.clamp_(least - 1, least).sub_(least - 1)
    return input * kept.to(input.dtype).mul_(_LEVELS / (_LEVELS - dropped))
