"""T5's GELU in one pass over memory instead of eight."""

from torch import nn
from transformers.activations import NewGELUActivation


def use_gelu(model: nn.Module) -> None:
    """Replace transformers' composed GELU (Hendrycks and Gimpel 2016, tanh form) by torch's own."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is NewGELUActivation:
                setattr(parent, name, nn.GELU(approximate="tanh"))
