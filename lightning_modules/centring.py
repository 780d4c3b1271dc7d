"""Shift a reward model so that the reference summaries score 0 on average."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Centring(NamedTuple):
    """What was found of the references' rewards.

    references: how many there are. mean_before: their mean reward before the shift; it is 0 behind
    it. std: their standard deviation, the scale of the rewards.
    """

    references: int
    mean_before: float
    std: float


@torch.no_grad()
def centre(model: nn.Module, batches: Iterable[Mapping[str, Tensor]]) -> Centring | None:
    """Subtract the mean reward of some texts from the bias of a model's output.

    Only differences of rewards are trained, so that their level is arbitrary. Stiennon et al. 2020,
    "Learning to summarize from human feedback", arXiv 2009.01325, appendix B.1: the reference
    summaries are to have a mean of 0.

    Args:
        model: A sequence classifier with one output.
        batches: The texts, as the model takes them.

    Returns:
        What was found; None without texts.

    Raises:
        ValueError: If the model's output has no bias to shift, or more comes after it.
    """
    bias = find_bias(model)
    training, device = model.training, bias.device
    model.eval()
    parts, last = [], None
    for batch in batches:
        last = {name: values.to(device) for name, values in batch.items()}
        parts.append(score(model, last))
    found = None
    if last is not None:
        rewards = torch.cat(parts).double()
        found = Centring(len(rewards), float(rewards.mean()), float(rewards.std(unbiased=False)))
        bias -= found.mean_before
        if not torch.allclose(score(model, last), parts[-1] - found.mean_before, atol=1e-3):
            raise ValueError(
                f"{type(model).__name__} does more with its output than add a bias, so that its "
                "rewards cannot be shifted; set data.references to null"
            )
    model.train(training)
    return found


def score(model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """Give the rewards [B] of texts, in fp32 whatever the precision around."""
    with torch.autocast(next(iter(inputs.values())).device.type, enabled=False):
        rewards: Tensor = model(**inputs).logits.squeeze(-1)
    return rewards


def find_bias(model: nn.Module) -> Tensor:
    """Find the bias of a classifier's output layer, its last linear layer of one output.

    Raises:
        ValueError: If there is none.
    """
    heads = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    head = heads[-1] if heads else None
    if head is None or head.out_features != 1 or head.bias is None:
        raise ValueError(
            f"{type(model).__name__} has no output with a bias to shift; set data.references to "
            "null, or take an encoder such as roberta-base"
        )
    return head.bias
