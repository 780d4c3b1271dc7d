"""Shift a reward model so that the reference summaries have a mean reward of 0."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Normalization(NamedTuple):
    """Rewards of the reference summaries.

    references: their number. mean_before: their mean reward before the shift, which makes it 0.
    std: their standard deviation, the scale of the rewards.
    """

    references: int
    mean_before: float
    std: float


@torch.no_grad()
def normalize_rewards(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    gathered: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Normalization | None:
    """Subtract the mean reward of some texts from the bias of a model's output.

    Only differences of rewards are trained, so their level is arbitrary. Stiennon et al. 2020,
    "Learning to summarize from human feedback", arXiv 2009.01325, appendix B.1: the reference
    summaries have a mean of 0.

    Args:
        model: A sequence classifier with one output.
        batches: The texts as model inputs, the same on all ranks.
        gathered: Gathers the model's weights if they are sharded.

    Returns:
        What the references scored; None without texts.

    Raises:
        ValueError: If the model's output has no bias to shift, or is changed after the bias.
    """
    bias = find_bias(model)
    inputs = [{name: v.to(bias.device) for name, v in batch.items()} for batch in batches]
    if not inputs:
        return None
    training = model.training
    model.eval()
    with gathered():
        parts = [score(model, batch) for batch in inputs]
    rewards = torch.cat(parts).double()
    mean = float(rewards.mean())
    bias -= mean
    with gathered():
        shifted = score(model, inputs[-1])
    if not torch.allclose(shifted, parts[-1] - mean, atol=1e-3):
        raise ValueError(
            f"{type(model).__name__} changes its output after adding the bias, so its rewards "
            "cannot be shifted; set data.references to null"
        )
    model.train(training)
    return Normalization(len(rewards), mean, float(rewards.std(unbiased=False)))


def score(model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """Return the rewards [B] of texts, in fp32 whatever the precision of the run."""
    with torch.autocast(next(iter(inputs.values())).device.type, enabled=False):
        rewards: Tensor = model(**inputs).logits.squeeze(-1)
    return rewards


def find_bias(model: nn.Module) -> Tensor:
    """Find the bias of a classifier's output layer, its last linear layer with one output.

    Raises:
        ValueError: If there is none.
    """
    heads = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    head = heads[-1] if heads else None
    if head is None or head.out_features != 1 or head.bias is None:
        raise ValueError(
            f"{type(model).__name__} has no output with a bias to shift; set data.references to "
            "null, or use an encoder such as roberta-base"
        )
    return head.bias
