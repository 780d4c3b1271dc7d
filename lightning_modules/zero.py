"""ZeRO-2 and ZeRO-3 by DeepSpeed for Lightning's Trainer, with the steps of a single device.

Lightning's own strategy leaves accumulation and clipping to DeepSpeed, which weighs micro-batches
alike and knows nothing of gradients that are not finite. Here both stay with the training step, and
so does the precision: weights in fp32, computed with under the Trainer's autocast.
"""

import os
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

from lightning.pytorch.callbacks import ModelSummary
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from torch import Tensor, nn

from lightning_modules.dividing import Dividing
from lightning_modules.strategies import ZERO_2, ZERO_3, find_optimizer_problem
from lightning_modules.zero_engine import Divided, make_engine
from lightning_modules.zero_optimizer import DividedOptimizer
from lightning_modules.zero_weights import put_weight


class Zero2Strategy(Dividing, DDPStrategy):
    """Weights on every rank; gradients and the optimizer's state divided among them.

    Args:
        **kwargs: ``process_group_backend`` and ``timeout``; see ``DDPStrategy``.
    """

    stage: Literal[2, 3] = 2

    shard_frozen = False

    whole_below = 0
    """Weights of at most so many numbers are not divided."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._models: list[nn.Module] = []
        self._divided: Divided | None = None

    def shard(self, model: nn.Module) -> None:
        """Note a model that is to be divided: that is done once its optimizer is there."""
        if model not in self._models:
            self._models.append(model)

    def setup(self, trainer: Any) -> None:
        """Set a fit or an evaluation up; one that came before it in this process is over."""
        if self._divided is not None:
            self.engine.release()
            self._divided, self.optimizers = None, []
        super().setup(trainer)

    def configure_ddp(self) -> None:
        """Wrap nothing: the engine brings gradients together."""

    def setup_optimizers(self, trainer: Any) -> None:
        """Make the optimizer, and let the ranks share what it trains."""
        super().setup_optimizers(trainer)
        (optimizer,) = self.optimizers
        problem = find_optimizer_problem(type(self).__name__, type(optimizer).__name__)
        if problem:
            raise ValueError(problem)
        os.environ.setdefault("LOCAL_RANK", str(self.local_rank))  # by which DeepSpeed goes
        self._divided = Divided(self._models)
        engine = make_engine(
            self._divided, optimizer, self.stage, self.root_device, self.whole_below
        )
        self.optimizers = [engine]  # type: ignore[list-item] # all that Lightning asks of one

    # Steps --------------------------------------------------------------------------------------

    @property
    def engine(self) -> DividedOptimizer:
        """The optimizer, with the engine behind it."""
        (optimizer,) = self.optimizers
        return optimizer  # type: ignore[return-value]

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Let the models compute in one forward pass of the engine's, unless there are several."""
        step = partial(super().training_step, *args, **kwargs)
        if self._divided is None or not self.lightning_module.automatic_optimization:
            return step()
        return self._divided.compute(step)

    def backward(self, closure_loss: Tensor, optimizer: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Go backward by the engine, with the hooks of Lightning around it."""
        self.pre_backward(closure_loss)
        closure_loss = self.precision_plugin.pre_backward(closure_loss, self.lightning_module)
        self.engine.backward(closure_loss)
        closure_loss = self.precision_plugin.post_backward(closure_loss, self.lightning_module)
        self.post_backward(closure_loss)
        return closure_loss

    # Checkpoints --------------------------------------------------------------------------------

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """Bring the optimizer's state together on rank 0, in torch's own format."""
        return optimizer.gather_state(self._gather)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Take the trained weights, or a share of them; the module has checked their names."""
        own = dict(self.lightning_module.named_parameters())
        for name, value in checkpoint["state_dict"].items():
            put_weight(own[name], value.to(own[name].device))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take this rank's share of the optimizer's state."""
        (state,) = checkpoint["optimizer_states"]
        self.engine.spread_state(state)


class Zero3Strategy(Zero2Strategy):
    """Weights, gradients and the optimizer's state divided among the ranks.

    Args:
        shard_frozen: Divide the models that PPO only asks too: a reference of its own, and reward
            models. Otherwise each rank has a whole copy of them, which takes more memory and no
            communication.
        whole_below: Weights of at most so many numbers, such as norms and small adapters, are not
            divided but for the optimizer's state and in evaluations: gathering one takes as long as
            gathering a large one.
        **kwargs: ``process_group_backend`` and ``timeout``; see ``DDPStrategy``.
    """

    stage = 3

    def __init__(self, shard_frozen: bool = True, whole_below: int = 10_000, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.shard_frozen = shard_frozen
        self.whole_below = whole_below

    def setup_optimizers(self, trainer: Any) -> None:
        """Make the optimizer, and let the ranks share it and the weights."""
        for callback in trainer.callbacks:
            if isinstance(callback, ModelSummary):
                callback._max_depth = 0  # it would count what is here of the weights: nothing
        super().setup_optimizers(trainer)


StrategyRegistry.register(
    ZERO_2, Zero2Strategy, description="Gradients and optimizer state divided by DeepSpeed"
)
StrategyRegistry.register(ZERO_3, Zero3Strategy, description="Weights, too, divided by DeepSpeed")
