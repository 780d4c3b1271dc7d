"""Tell what a tensor of a computation is, from its shape and the operation that made it."""

from typing import Any

import torch
from torch import Tensor

from lightning_modules.ppo.policy import PPOPolicy
from lightning_modules.summarization import SummarizationModule
from planning.parts import ATTENTION, COPIES, LOGITS, OTHER, Lengths

_CAST = torch.ops.aten._to_copy.default


class Classifier:
    """Names the part of a new tensor.

    Args:
        module: With its model built.
        lengths: Of the batches.
    """

    def __init__(self, module: Any, lengths: Lengths) -> None:
        config = module.model.config
        self.vocabulary = config.vocab_size if isinstance(module, SummarizationModule) else None
        self.weights = {tuple(p.shape) for p in module.parameters() if p.dim() == 2}
        virtual = getattr(module, "virtual_tokens", 0)
        self.lengths = {lengths.source + virtual, lengths.target}
        if isinstance(module, PPOPolicy):
            self.lengths.add(module.ppo.max_new_tokens)

    def __call__(self, tensor: Tensor, made_by: Any) -> str:
        """Name the part of a tensor that an operation made."""
        shape = tuple(tensor.shape)
        if made_by is _CAST and tensor.dtype == torch.bfloat16 and shape in self.weights:
            return COPIES
        if shape and shape[-1] == self.vocabulary:
            return LOGITS
        if len(shape) > 2 and shape[-1] in self.lengths and shape[-2] in self.lengths:
            return ATTENTION
        return OTHER
