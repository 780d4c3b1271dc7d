"""FSDP2: shard weights, gradients and optimizer state among ranks; checkpoints of one device.

Each transformer block is a unit whose weights are gathered only while it computes; everything else
(embeddings, head, soft prompt, value head) forms the root unit (Zhao et al. 2023, "PyTorch FSDP",
arXiv 2304.11277; torch's ``fully_shard``). Generation, rollouts and evaluations gather all units
once (:meth:`Shards.gathered`), so that a rank decodes at its own pace.

A checkpoint is that of a single device, weights and optimizer, so a run can be resumed with another
strategy and on another number of ranks.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.modeling_layers import GradientCheckpointingLayer

Result = TypeVar("Result")

FSDP2 = "fsdp2"
"""Name of the strategy: ``--trainer.strategy fsdp2``."""


# Tensors ----------------------------------------------------------------------------------------


def full(value: Tensor) -> Tensor:
    """Gather a tensor that is sharded among the ranks; return others as they are."""
    return value.full_tensor() if isinstance(value, DTensor) else value


@torch.no_grad()
def full_state(weights: Mapping[str, Tensor], keep: bool = True) -> dict[str, Tensor]:
    """Gather named tensors, for a checkpoint or an export; collective if any is sharded.

    Args:
        weights: Tensors by name; one with several names is gathered once and stays one tensor.
        keep: Whether this rank keeps the values; on the others they are gathered and dropped.
    """
    gathered = {
        weight: full(weight).detach().cpu() if keep else full(weight).new_empty(0)
        for weight in dict.fromkeys(weights.values())
    }
    return {name: gathered[weight] for name, weight in weights.items()}


def shard_like(value: Any, weight: Tensor) -> Any:
    """Shard a full tensor as a weight is sharded, without communication.

    Args:
        value: The same on all ranks. One whose shape is not the weight's, such as an optimizer's
            step count, is returned as it is.
        weight: The weight.
    """
    if not isinstance(weight, DTensor) or getattr(value, "shape", None) != weight.shape:
        return value
    mesh = weight.device_mesh
    return distribute_tensor(value.to(weight.device), mesh, weight.placements, src_data_rank=None)


# Modules ----------------------------------------------------------------------------------------


class _Root(nn.Module):
    """All models of a LightningModule as one FSDP unit; its forward pass is any work with them."""

    def __init__(self, models: Iterable[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, work: Callable[[], Result]) -> Result:
        """Do the work while the root's own weights are gathered."""
        return work()


class Shards:
    """The models of a LightningModule, sharded among all ranks.

    Randomly initialized weights are broadcast from rank 0; all others must already be identical.

    Args:
        module: The LightningModule; all models that are its children are sharded, frozen ones too.
        device: Device of this rank. Units are moved there one after the other.
    """

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
        self.root = _Root(module.children())
        blocks = [m for m in self.root.modules() if isinstance(m, GradientCheckpointingLayer)]
        for unit in (*blocks, self.root):
            unit.to(device)
            for weight in unit.parameters():
                if not isinstance(weight, DTensor):
                    torch.distributed.broadcast(weight.data, src=0)
            fully_shard(unit, mesh=mesh, reshard_after_forward=True)
        # FSDP2 takes the unit that computes first for the root of all.
        self.root(lambda: None)

    def as_forward(self, work: Callable[[], Result]) -> Result:
        """Do work with the models as one forward pass, the only place where they can be called.

        Args:
            work: Returns tensors, or tuples of them, whose gradients reach the shards.
        """
        result: Result = self.root(work)
        return result

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Gather all weights on every rank inside a ``with`` block.

        Entering and leaving are collective; inside, ranks may run different code. Weights must not
        be changed inside.
        """
        units = [unit for unit in self.root.modules() if isinstance(unit, FSDPModule)]
        # The gathered buffers are reused later: tensors of inference mode could not have gradients.
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


# The strategy -----------------------------------------------------------------------------------


class FullyShardedStrategy(ModelParallelStrategy):
    """FSDP2 over all ranks, with the checkpoints of a single device.

    A module shards its models in ``configure_model``, see :class:`Shards`.

    Args:
        timeout: How long a collective waits for the other ranks before it fails.
        process_group_backend: ``nccl`` or ``gloo``; None chooses by the device.
    """

    def __init__(
        self,
        timeout: timedelta = timedelta(minutes=30),
        process_group_backend: str | None = None,
    ) -> None:
        super().__init__(
            save_distributed_checkpoint=False,
            process_group_backend=process_group_backend,
            timeout=timeout,
        )
        self._evaluation = ExitStack()

    # Evaluations run on gathered weights --------------------------------------------------------

    def _begin_evaluation(self) -> None:
        module: Any = self.lightning_module
        self._evaluation.enter_context(module.gathered())

    def _end_evaluation(self) -> None:
        self._evaluation.close()

    on_validation_start = on_test_start = on_predict_start = _begin_evaluation
    on_validation_end = on_test_end = on_predict_end = _end_evaluation

    # Checkpoints --------------------------------------------------------------------------------

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """Restore before the optimizers exist: their schedule needs the restored data's length."""
        return False

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Let Lightning pass the optimizer state of a checkpoint to this strategy."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Gather the trained weights; values are kept on rank 0 only."""
        module: Any = self.lightning_module
        return full_state(dict(module.trained_parameters()), keep=self.is_global_zero)

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """Gather an optimizer's state in torch's own format; values are kept on rank 0 only."""
        if isinstance(optimizer, LightningOptimizer):
            optimizer = optimizer.optimizer
        state = optimizer.state_dict()
        gathered = {
            number: full_state(values, keep=self.is_global_zero)
            for number, values in state["state"].items()
        }
        return {**state, "state": gathered}

    def load_checkpoint(
        self, checkpoint_path: Any, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Map a checkpoint's file into memory: each rank reads only its own shards."""
        return torch.load(checkpoint_path, map_location="cpu", mmap=True, weights_only=True)

    @torch.no_grad()
    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Copy this rank's shard of the trained weights; the module has checked their names."""
        own = dict(self.lightning_module.named_parameters())  # type: ignore[union-attr]
        for name, value in checkpoint["state_dict"].items():
            own[name].copy_(shard_like(value.to(own[name].device), own[name]))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load this rank's shard of the optimizer states."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            state = {  # torch numbers the weights in the order of the groups
                number: {name: shard_like(value, weights[number]) for name, value in values.items()}
                for number, values in saved["state"].items()
            }
            optimizer.load_state_dict({**saved, "state": state})


StrategyRegistry.register(FSDP2, FullyShardedStrategy, description="FSDP2 over all ranks")


def find_strategy_problem(strategy: Any) -> str | None:
    """Explain why a strategy cannot be used, or return None if it can.

    Args:
        strategy: A strategy, or its name or class path.
    """
    name = strategy if isinstance(strategy, str) else type(strategy).__name__
    name = name.rpartition(".")[2].lower()
    if (name.startswith("fsdp") and name != FSDP2) or "deepspeed" in name or "modelpar" in name:
        return (
            f"trainer.strategy: Lightning's {name} neither weighs micro-batches by their tokens "
            "nor writes checkpoints of a single device; use ddp, or fsdp2 "
            "(--config configs/overlays/fsdp.yaml)"
        )
    return None


def find_rows_problem(trainer: Any) -> str | None:
    """Explain why a rank might get an empty batch under FSDP2, or return None if none can.

    The other ranks would wait for it to gather each block; DDP needs only its gradients.
    """
    rows = getattr(getattr(trainer, "datamodule", None), "batch_size", 2)
    sharded = isinstance(trainer.strategy, FullyShardedStrategy)
    if sharded and rows == 1 and trainer.accumulate_grad_batches > 1:
        return "fsdp2 with trainer.accumulate_grad_batches needs data.batch_size of 2 or more"
    return None
