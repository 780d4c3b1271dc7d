"""FSDP2: weights, gradients and optimizer state divided among the ranks; all that we know of it.

Each block of a model, and what is left of the model as its root, is a unit whose weights are whole
only while it computes (Zhao et al. 2023, "PyTorch FSDP", arXiv 2304.11277; the form that torch
calls ``fully_shard``). Three places ask more of it than a forward and a backward pass:

- Generation, rollouts and evaluations run on whole weights (:func:`whole`): gathered once for all
  of their passes, and not once a token. So a rank decodes at its own pace and waits for nobody.
- Checkpoints are those of a single device, weights and optimizer (:class:`FullyShardedStrategy`):
  a run goes on with another strategy, and on another number of ranks.
- Exports are written from a copy that is whole (:func:`make_whole`).
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map_only
from transformers.modeling_layers import GradientCheckpointingLayer

Result = TypeVar("Result")

NAME = "fsdp2"
"""Under which Lightning knows the strategy: ``--trainer.strategy fsdp2``."""


class FullyShardedStrategy(ModelParallelStrategy):
    """FSDP2 over all ranks, with the checkpoints of a single device.

    Args:
        shard_frozen: Divide the models that PPO only asks too: a reference of its own, and reward
            models. Otherwise each rank has a whole copy of them, which takes more memory and no
            communication.
        **kwargs: ``process_group_backend`` and ``timeout``; see ``ModelParallelStrategy``.
    """

    def __init__(self, shard_frozen: bool = True, **kwargs: Any) -> None:
        super().__init__("auto", 1, save_distributed_checkpoint=False, **kwargs)
        self.shard_frozen = shard_frozen
        self._evaluation = ExitStack()

    def setup_environment(self) -> None:
        """Let all ranks divide the model among them."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def shard(self, model: nn.Module) -> None:
        """Divide a model that is the same on all ranks but for what was drawn at random.

        Args:
            model: On the CPU; its units go to the device one after the other.
        """
        for unit in (*find_blocks(model), model):
            unit.to(self.root_device)
            for weight in unit.parameters():
                if not isinstance(weight, DTensor):
                    torch.distributed.broadcast(weight.data, src=0)
            fully_shard(unit, mesh=self.device_mesh["data_parallel"], reshard_after_forward=True)
        model.compute = lambda work: work()  # type: ignore[assignment]
        register_fsdp_forward_method(model, "compute")
        # The unit that computes first is taken for the root: here that is not left to chance.
        as_forward(model, lambda: None)

    # Whole weights in evaluations ---------------------------------------------------------------

    def _begin_evaluation(self) -> None:
        self._evaluation.enter_context(whole(self.lightning_module))

    def _end_evaluation(self) -> None:
        self._evaluation.close()

    on_validation_start = on_test_start = on_predict_start = _begin_evaluation
    on_validation_end = on_test_end = on_predict_end = _end_evaluation

    # Checkpoints --------------------------------------------------------------------------------

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Whether a checkpoint's optimizer state is handed to this strategy."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Bring the trained weights together on rank 0; the others get names without values.

        Frozen ones are not gathered: a checkpoint does not hold them.
        """
        weights = self.lightning_module.named_parameters()  # type: ignore[union-attr]
        return {name: self._gather(each) for name, each in weights if each.requires_grad}

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """Bring an optimizer's state together on rank 0, in torch's own format."""
        state = getattr(optimizer, "_optimizer", optimizer).state_dict()
        return tree_map_only(DTensor, self._gather, state)

    def _gather(self, value: Tensor) -> Tensor | None:
        """Give a tensor's whole value on rank 0, on the CPU; all ranks have to ask for it."""
        value = full(value.detach())
        return value.to("cpu", copy=True) if self.is_global_zero else None

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None
    ) -> None:
        """Write a checkpoint, on rank 0, as every other strategy does."""
        if self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, filepath, storage_options)

    def load_checkpoint(
        self, checkpoint_path: Any, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Map a checkpoint's file into memory: each rank takes no more of it than its share."""
        return torch.load(checkpoint_path, map_location="cpu", mmap=True, weights_only=True)

    @torch.no_grad()
    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Take this rank's share of the trained weights; the module has checked their names."""
        own = dict(self.lightning_module.named_parameters())  # type: ignore[union-attr]
        for name, value in checkpoint["state_dict"].items():
            own[name].copy_(spread(value.to(own[name].device), own[name]))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take this rank's share of the optimizers' states."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            numbers = [number for group in saved["param_groups"] for number in group["params"]]
            own = dict(zip(numbers, weights, strict=True))
            state = {
                number: {
                    key: spread(value, own[number]) if isinstance(value, Tensor) else value
                    for key, value in values.items()
                }
                for number, values in saved["state"].items()
            }
            optimizer.load_state_dict({**saved, "state": state})


StrategyRegistry.register(
    NAME, FullyShardedStrategy, description="Weights divided among the ranks by FSDP2"
)


def find_strategy_problem(strategy: Any) -> str | None:
    """Say why training refuses a strategy, or return None where it takes it.

    Args:
        strategy: A strategy, or Lightning's name or class path of one.
    """
    if isinstance(strategy, FullyShardedStrategy):
        return None
    name = (strategy if isinstance(strategy, str) else type(strategy).__name__).rpartition(".")[2]
    remedy = f"take ddp, or {NAME} (--config configs/overlays/fsdp.yaml)"
    if "deepspeed" in name.lower() or getattr(strategy, "handles_gradient_accumulation", False):
        return (
            f"trainer.strategy: {name} accumulates and clips gradients itself: it would weigh "
            "every micro-batch alike, however many tokens are in it, and hide gradients that are "
            f"not finite from the checks here; {remedy}, which divides what ZeRO-3 divides"
        )
    if name.lower() in ("fsdp", "fsdp_cpu_offload", "fsdpstrategy", "modelparallelstrategy"):
        return (
            f"trainer.strategy: Lightning's {name} knows nothing of adapters, rollouts and the "
            f"checkpoints here; {remedy}"
        )
    return None


def find_rows_problem(trainer: Any) -> str | None:
    """Say why a rank might come to a step without rows, or return None where none can.

    With DDP it brings gradients of 0 without a pass. Under FSDP2 the others would wait for its part
    in gathering each block's weights.
    """
    rows = getattr(getattr(trainer, "datamodule", None), "batch_size", 2)
    is_possible = rows == 1 and trainer.accumulate_grad_batches > 1
    if not isinstance(trainer.strategy, FullyShardedStrategy) or not is_possible:
        return None
    return (
        f"data.batch_size 1 with trainer.accumulate_grad_batches {trainer.accumulate_grad_batches} "
        f"leaves ranks without a row at times, which {NAME} cannot do with; set data.batch_size 2 "
        "or more, and accumulate the less"
    )


def shard(module: Any, *frozen: nn.Module) -> None:
    """Divide the models of a module among the ranks, where its Trainer's strategy does so.

    Args:
        module: A LightningModule; every model that is a direct part of it is divided by itself.
        *frozen: Models beside it that are only asked.
    """
    strategy = None if module._trainer is None else module.trainer.strategy
    if not isinstance(strategy, FullyShardedStrategy):
        return
    parts = [part for part in module.children() if any(True for _ in part.parameters())]
    for model in (*parts, *frozen):
        is_trained = any(weight.requires_grad for weight in model.parameters())
        if is_trained or model is module.model or strategy.shard_frozen:
            strategy.shard(model)


def find_blocks(model: nn.Module) -> list[nn.Module]:
    """Give the transformer blocks of a model, by the class that transformers makes them of."""
    return [part for part in model.modules() if isinstance(part, GradientCheckpointingLayer)]


def is_sharded(model: nn.Module) -> bool:
    """Whether some weights of a model are divided at the moment."""
    return any(isinstance(weight, DTensor) for weight in model.parameters())


def as_forward(model: Any, work: Callable[[], Result]) -> Result:
    """Do some work with the parts of a model as FSDP does a model's ``forward``.

    Embeddings and output head are whole in it, blocks while they compute. The gradients of what
    comes out of it find their way back.

    Args:
        model: Divided or not.
        work: Gives tensors, or tuples of them.
    """
    return model.compute(work) if isinstance(model, FSDPModule) else work()


@contextmanager
def whole(module: nn.Module) -> Iterator[None]:
    """Have all weights of a module whole, on every rank, inside a ``with`` block.

    All ranks have to enter it and to leave it; in between they need not do the same. The weights
    may not be changed in it.
    """
    units = [part for part in module.modules() if isinstance(part, FSDPModule)]
    # What is gathered is kept for the next time: tensors of inference mode have no gradients then.
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


def make_whole(module: Any) -> Any:
    """Give a module whose weights are whole, to export: itself, or a copy where it is divided.

    The copy is made on rank 0 alone, from the backbone's files and the trained weights.

    Returns:
        The module; None on the other ranks where it is divided.
    """
    if not any(isinstance(part, FSDPModule) for part in module.modules()):
        return module
    trained = module.trainer.strategy.lightning_module_state_dict()
    if module.global_rank != 0:
        return None
    twin = copy.copy(module)
    twin._modules = {}
    twin.model = None
    twin.load_model()
    twin.load_state_dict(trained, strict=False)
    return twin.to(module.device)


def full(value: Tensor) -> Tensor:
    """Give a tensor that is divided among the ranks as a whole one; others as they are."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def spread(value: Tensor, weight: Tensor) -> Tensor:
    """Divide a tensor that belongs to a weight as that is divided; this rank's share of it.

    Args:
        value: On all ranks, whole. One of another shape than the weight, such as an optimizer's
            count of steps, stays as it is.
        weight: The weight.
    """
    if not isinstance(weight, DTensor) or value.shape != weight.shape:
        return value
    mesh = weight.device_mesh
    value = value.to(weight.device)
    return distribute_tensor(value, mesh, weight.placements, src_data_rank=None)
