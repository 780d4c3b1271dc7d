"""DeepSpeed's engine, set up to leave the steps to who trains: it counts, clips and casts nothing.

Rajbhandari et al. 2020, "ZeRO", arXiv 1910.02054.
"""

import logging
import os
from argparse import Namespace
from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from lightning_modules.zero_optimizer import DividedOptimizer
from lightning_modules.zero_weights import AT_ONCE

Result = TypeVar("Result")

LIVE = 2 * AT_ONCE
"""Weights that stage 3 may have whole at once, one that is larger by itself apart."""


def import_deepspeed(device: torch.device) -> Any:
    """Import DeepSpeed for a kind of device; it takes seconds, and says a lot."""
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    import deepspeed

    deepspeed.utils.logging.logger.setLevel(logging.WARNING)
    # An operation for inference on a CPU: g++ would compile it for nothing, and ranks hang in it.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


class Divided(nn.Module):
    """The models that share an engine: what it gathers for, and gives free behind.

    Args:
        models: Trained ones, and others that are to be divided with them.
    """

    def __init__(self, models: Iterable[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)
        self.offload: Any = None
        """What gathers weights, in stage 3."""
        self._work: Callable[[], None] | None = None

    def compute(self, work: Callable[[], Result]) -> Result:
        """Do some work as a forward pass of the engine's, unless it is in one, or all is whole.

        Args:
            work: Gives anything.
        """
        if self._work is not None or self.offload is None or not self.offload.forward_hooks:
            return work()
        found: list[Result] = []
        self._work = lambda: found.append(work())
        try:
            self()
        finally:
            self._work = None
        return found[0]

    def forward(self) -> None:
        """Do the work; nothing comes in or out, so that no hook handles it."""
        if self._work is not None:
            self._work()


def make_engine(
    models: Divided,
    optimizer: torch.optim.Optimizer,
    stage: Literal[2, 3],
    device: torch.device,
    whole_below: int,
) -> DividedOptimizer:
    """Let ranks share the gradients and the optimizer of some models; in stage 3 the weights too.

    Args:
        models: Alike on all ranks but for what was drawn at random: rank 0 counts. On the device.
        optimizer: Over their trained weights; its update of a number knows no other number.
        stage: Of ZeRO.
        device: This rank's.
        whole_below: In stage 3, weights of at most so many numbers stay whole.
    """
    deepspeed = import_deepspeed(device)
    weights = [list(group["params"]) for group in optimizer.param_groups]
    zero: dict[str, Any] = {
        "stage": stage,
        "overlap_comm": device.type != "cpu",
        "reduce_bucket_size": min(AT_ONCE, sum(w.numel() for group in weights for w in group)),
        "allgather_bucket_size": AT_ONCE,
    }
    if stage == 3:
        zero |= {
            "stage3_prefetch_bucket_size": AT_ONCE,
            # A weight that a pass comes back to is gathered again.
            "stage3_max_reuse_distance": 0,
            "stage3_max_live_parameters": LIVE,
            "stage3_param_persistence_threshold": whole_below,
        }
    config = {
        "train_micro_batch_size_per_gpu": 1,  # of which nothing but its own log speaks
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,
        "zero_allow_untested_optimizer": True,
        "timers": {"throughput": {"enabled": False}},  # which waits for the device in each pass
        "zero_optimization": zero,
    }
    where = Namespace(device_rank=device.index) if device.index is not None else None
    engine, *_ = deepspeed.initialize(args=where, model=models, optimizer=optimizer, config=config)
    if stage == 3:
        models.offload = engine.optimizer.parameter_offload
        for model in models.models:
            model.compute = models.compute  # type: ignore[assignment] # see sharding.as_forward
    return DividedOptimizer(engine, optimizer, weights)
