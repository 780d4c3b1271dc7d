"""How several devices share a module: FSDP2 for Lightning's Trainer, and what is refused of all.

With FSDP2 a checkpoint is that of a single device, weights and optimizer, so that a run goes on
with another strategy, and on another number of ranks. An export is written from a copy of the
module that is whole.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_map_only

from lightning_modules.dividing import Dividing
from lightning_modules.optimizer_step import trained_weights
from lightning_modules.sharding import divide, has_shares, spread

FSDP_2 = "fsdp2"
"""Under which Lightning knows the strategies: ``--trainer.strategy fsdp2``."""


class FullyShardedStrategy(Dividing, ModelParallelStrategy):
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

    def setup_environment(self) -> None:
        """Let all ranks divide the model among them."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def shard(self, model: nn.Module) -> None:
        """Divide a model that is the same on all ranks but for what was drawn at random."""
        divide(model, self.device_mesh["data_parallel"], self.root_device)

    # Checkpoints --------------------------------------------------------------------------------

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """Whether a checkpoint is loaded once the optimizers are made.

        It is not: these ask the datamodule for the number of steps, and so for its loader, which
        has to know by then where in the data the run goes on.
        """
        return False

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Whether a checkpoint's optimizer state is handed to this strategy."""
        return True

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """Bring an optimizer's state together on rank 0, in torch's own format."""
        state = getattr(optimizer, "_optimizer", optimizer).state_dict()
        return tree_map_only(DTensor, self._gather, state)

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
        own = dict(self.lightning_module.named_parameters())
        for name, value in checkpoint["state_dict"].items():
            own[name].copy_(spread(value.to(own[name].device), own[name]))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take this rank's share of the optimizers' states."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            numbers = [number for group in saved["param_groups"] for number in group["params"]]
            own = dict(zip(numbers, trained_weights(optimizer), strict=True))
            state = {
                number: {
                    key: spread(value, own[number]) if isinstance(value, Tensor) else value
                    for key, value in values.items()
                }
                for number, values in saved["state"].items()
            }
            optimizer.load_state_dict({**saved, "state": state})


StrategyRegistry.register(
    FSDP_2, FullyShardedStrategy, description="Weights divided among the ranks by FSDP2"
)


def name_strategy(trainer: Any) -> str:
    """Give the name, or class path, of the strategy in a Trainer's settings."""
    return str(getattr(trainer.strategy, "class_path", trainer.strategy))


_CLASSES = {"fullyshardedstrategy": FSDP_2}


def recognise(name: str) -> str | None:
    """Give the short name of a strategy that divides models, by any of its names; else None."""
    short = name.rpartition(".")[2].lower()
    found = _CLASSES.get(short, short)
    return found if found in _CLASSES.values() else None


def find_strategy_problem(strategy: Any, compiles: bool = False) -> str | None:
    """Say why training refuses a strategy, or return None where it takes it.

    Args:
        strategy: A strategy, or Lightning's name or class path of one.
        compiles: Whether parts of the model are to be compiled.
    """
    name = (strategy if isinstance(strategy, str) else type(strategy).__name__).rpartition(".")[2]
    if (ours := recognise(name)) is not None:
        if compiles:
            return (
                f"trainer.strategy: {ours} was not tried with compiled blocks or decoding; leave "
                "model.compile and model.ppo.compile_decoding out, or take ddp"
            )
        return None
    remedy = f"take ddp, or {FSDP_2} (--config configs/overlays/fsdp.yaml)"
    if "deepspeed" in name.lower() or getattr(strategy, "handles_gradient_accumulation", False):
        return (
            f"trainer.strategy: Lightning's {name} weighs every micro-batch alike, however "
            f"many tokens it holds; {remedy}"
        )
    if name.lower() in ("fsdp", "fsdp_cpu_offload", "fsdpstrategy", "modelparallelstrategy"):
        return (
            f"trainer.strategy: Lightning's {name} knows nothing of adapters, rollouts and the "
            f"checkpoints here; {remedy}"
        )
    return None


def find_rows_problem(trainer: Any) -> str | None:
    """Say why a rank might come to a step without rows, or return None where none can.

    With DDP and ZeRO-2 it brings gradients of 0 without a pass. Under the others they would wait
    for its part in gathering each block's weights.
    """
    name = recognise(type(trainer.strategy).__name__)
    rows = getattr(getattr(trainer, "datamodule", None), "batch_size", 2)
    is_possible = rows == 1 and trainer.accumulate_grad_batches > 1
    if name != FSDP_2 or not is_possible:
        return None
    return (
        f"data.batch_size 1 with trainer.accumulate_grad_batches {trainer.accumulate_grad_batches} "
        f"leaves ranks without a row at times, which {name} cannot do with; set data.batch_size 2 "
        "or more, and accumulate the less"
    )


def shard(module: Any, *frozen: nn.Module) -> None:
    """Divide the models of a module among the ranks, where its Trainer's strategy does so.

    Args:
        module: A LightningModule; every model that is a direct part of it is divided by itself.
        *frozen: Models beside it that are only asked.
    """
    strategy = None if module._trainer is None else module.trainer.strategy
    if not isinstance(strategy, Dividing):
        return
    for model in (*module.children(), *frozen):
        weights = list(model.parameters())
        is_trained = model is module.model or any(weight.requires_grad for weight in weights)
        is_new = bool(weights) and not has_shares(model)
        if is_new and (is_trained or strategy.shard_frozen):
            strategy.shard(model)


def make_whole(module: Any) -> Any:
    """Give a module whose weights are whole, to export: itself, or a copy where it is divided.

    The copy is made on rank 0 alone, from the backbone's files and the trained weights.

    Returns:
        The module; None on the other ranks where it is divided.
    """
    if not has_shares(module):
        return module
    trained = module.trainer.strategy.lightning_module_state_dict()
    if module.global_rank != 0:
        return None
    twin = copy.copy(module)
    twin._trainer = module.trainer  # which a copy of a LightningModule leaves behind
    twin._modules = {}
    twin.model = None
    twin.load_model()
    twin.load_state_dict(trained, strict=False)
    return twin.to(module.device)
