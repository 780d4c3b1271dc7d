"""The value head: one number for each decoder position."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class ValueHead(nn.Module):
    """A linear layer from the decoder's last hidden state to the expected return.

    Weights start from N(0, 1 / sqrt(d + 1)) and the bias from 0 (Huang et al. 2024, N+ details); no
    dropout. For FLAN-T5-base: 768 + 1 = 769 parameters.

    Args:
        d_model: Size of the hidden state.
    """

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.linear = nn.Linear(d_model, 1)
        nn.init.normal_(self.linear.weight, std=(d_model + 1) ** -0.5)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Float[Tensor, "*N d"]) -> Float[Tensor, "*N"]:
        """Map hidden states to values, always in the head's own precision."""
        with torch.autocast(hidden.device.type, enabled=False):
            return self.linear(hidden.to(self.linear.weight.dtype)).squeeze(-1)
