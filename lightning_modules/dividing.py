"""What strategies that divide models share: whole evaluations, checkpoints of one device."""

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules.sharding import full, whole


class Dividing:
    """A strategy whose ranks have shares of models; mixed into one of Lightning's.

    A checkpoint is that of a single device, weights and optimizer, so that a run goes on with
    another strategy, and on another number of ranks. Evaluations run on whole weights.
    """

    lightning_module: Any
    is_global_zero: bool

    shard_frozen = True
    """Whether models that are only asked are divided too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._evaluation = ExitStack()

    def shard(self, model: nn.Module) -> None:
        """Divide a model that is the same on all ranks but for what was drawn at random."""
        raise NotImplementedError

    # Whole weights in evaluations ---------------------------------------------------------------

    def _begin_evaluation(self) -> None:
        self._evaluation.enter_context(whole(self.lightning_module))

    def _end_evaluation(self) -> None:
        self._evaluation.close()

    on_validation_start = on_test_start = on_predict_start = _begin_evaluation
    on_validation_end = on_test_end = on_predict_end = _end_evaluation

    # Checkpoints --------------------------------------------------------------------------------

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Bring the trained weights together on rank 0; the others get names without values.

        Frozen ones are not gathered: a checkpoint does not hold them.
        """
        weights = self.lightning_module.named_parameters()
        return {name: self._gather(each) for name, each in weights if each.requires_grad}

    def _gather(self, value: Tensor) -> Tensor | None:
        """Give a tensor's whole value on rank 0, on the CPU; all ranks have to ask for it."""
        with torch.no_grad():
            value = full(value).detach()
        return value.to("cpu", copy=True) if self.is_global_zero else None
