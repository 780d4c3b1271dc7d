"""The optimizer of a DeepSpeed engine, with the steps and the state of a single device.

DeepSpeed as it comes counts micro-batches, averages and clips by itself. Here it does none of that:
a backward pass adds to the gradients, whose shares are then scaled, measured and clipped like any
others, and a step is taken or not by who trains. What is touched of DeepSpeed's own is here and in
:mod:`lightning_modules.zero_weights`, and is that of 0.19.8: ``tests/test_zero_engine.py`` goes red
where another version keeps its shares elsewhere.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules.gradients import HoldsGradients
from lightning_modules.zero_weights import make_whole_again, put_share


class DividedOptimizer(HoldsGradients):
    """The optimizer of an engine, as Lightning and a training step take it.

    LightningOptimizer takes its methods over and none of its state, so none is kept here.

    Args:
        engine: Of ``deepspeed.initialize``.
        optimizer: What it was made with; its groups hold shares of the weights now.
        weights: Those that it trains, by its groups, as they were.
    """

    def __init__(
        self,
        engine: Any,
        optimizer: torch.optim.Optimizer,
        weights: Sequence[Sequence[nn.Parameter]],
    ) -> None:
        self.engine = engine
        self.inner = optimizer
        self.weights = weights
        # Never a boundary: a backward pass adds to the gradients, whatever comes behind it.
        engine.set_gradient_accumulation_boundary(False)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The settings of each group; a schedule changes them."""
        return self.inner.param_groups

    @property
    def state(self) -> Any:
        """The state of this rank's shares."""
        return self.inner.state

    @property
    def defaults(self) -> dict[str, Any]:
        """The optimizer's settings."""
        return self.inner.defaults

    # A step -------------------------------------------------------------------------------------

    def backward(self, loss: Tensor) -> None:
        """Go backward on a loss: the mean over the ranks is added to the gradients."""
        # As the engine's own forward pass does, which is not used: it switches autocast off.
        self.engine.optimizer.clear_backward_seen_flag()
        self.engine.backward(loss)

    def gradients(self) -> list[Tensor]:
        """Give this rank's share of all gradients, to be changed in place."""
        zero = self.engine.optimizer
        if any(part is not None for part in getattr(zero, "all_grad_tensors", {}).values()):
            # Stage 2 keeps the sums apart until then; what was taken of them before comes on top.
            before = dict(zero.averaged_gradients)
            zero.finalize_gradient_accumulation_boundary()
            for group, share in before.items():
                for part, earlier in zip(zero.averaged_gradients[group], share or (), strict=False):
                    part.add_(earlier)
        shares = zero.averaged_gradients.values()
        return [part for share in shares if share is not None for part in share]

    def sum_over_ranks(self, value: Tensor) -> Tensor:
        """Sum a tensor over the ranks."""
        torch.distributed.all_reduce(value)
        return value

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients."""
        zero = self.engine.optimizer
        zero.zero_grad(set_to_none=True)
        for kept in (zero.averaged_gradients, getattr(zero, "all_grad_tensors", {})):
            for group in kept:
                kept[group] = None
        if (buffer := getattr(zero, "grad_partitions_flat_buffer", None)) is not None:
            # Of stage 3. A weight that the next backward pass does not reach would keep its last.
            buffer.zero_()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step, if there are gradients after the closure."""
        result = None if closure is None else closure()
        if self.gradients():
            self.engine.optimizer.step()
            self.zero_grad()
        return result

    def release(self) -> None:
        """Let go of the weights: they are whole again, and nobody's. All ranks take part."""
        make_whole_again(self.engine.module)
        self.engine.destroy()

    # State, as one device has it ----------------------------------------------------------------

    def gather_state(self, keep: Callable[[Tensor], Any]) -> dict[str, Any]:
        """Bring the optimizer's state together, in torch's own format; all ranks take part.

        Args:
            keep: Given each whole tensor in turn; what it gives goes into the state.
        """
        from deepspeed.utils import safe_get_full_optimizer_state

        _link(self.engine.optimizer)
        # All weights take their steps together, so what is no share is the same for all of them.
        sample: Mapping[str, Any] = next(iter(self.inner.state.values()), {})

        def gather(weight: Tensor, name: str, value: Any) -> Any:
            if _is_share(value):
                return keep(safe_get_full_optimizer_state(weight, name))
            return keep(value) if isinstance(value, Tensor) else value

        groups: list[dict[str, Any]] = []
        state: dict[int, dict[str, Any]] = {}
        for group, weights in zip(self.inner.param_groups, self.weights, strict=True):
            numbers = list(range(len(state), len(state) + len(weights)))
            for number, weight in zip(numbers, weights, strict=True):
                state[number] = {n: gather(weight, n, value) for n, value in sample.items()}
            groups.append(group | {"params": numbers})
        return {"state": state if sample else {}, "param_groups": groups}

    def spread_state(self, saved: Mapping[str, Any]) -> None:
        """Take this rank's share of a state in torch's own format."""
        for group, its in zip(self.inner.param_groups, saved["param_groups"], strict=True):
            group.update({name: value for name, value in its.items() if name != "params"})
        if not saved["state"]:
            return
        numbers = (number for group in saved["param_groups"] for number in group["params"])
        states = [saved["state"][number] for number in numbers]
        self._make_states(states[0])
        weights = (weight for group in self.weights for weight in group)
        for weight, its in zip(weights, states, strict=True):
            for name, value in its.items():
                if _is_share(value):
                    put_share(weight, value, name)

    def _make_states(self, sample: Mapping[str, Any]) -> None:
        """Make the state of each share as its first step would, for it to be filled."""
        zero = self.engine.optimizer
        on_device = any(g.get("fused") or g.get("capturable") for g in self.inner.param_groups)
        for part in _shares(zero):
            device = part.device if on_device else torch.device("cpu")
            self.inner.state[part] = {
                name: torch.zeros_like(part, requires_grad=False)
                if _is_share(value)
                else (value.to(device, copy=True) if isinstance(value, Tensor) else value)
                for name, value in sample.items()
            }
        _link(zero)


def _is_stage_2(zero: Any) -> bool:
    return hasattr(zero, "single_partition_of_fp32_groups")


def _link(zero: Any) -> None:
    """Let stage 2 know the state of each weight: it looks when the first group has some only."""
    if _is_stage_2(zero):
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()


def _shares(zero: Any) -> list[Tensor]:
    """Give the weights of this rank, in one tensor a group."""
    if _is_stage_2(zero):
        return zero.single_partition_of_fp32_groups
    return zero.fp32_partitioned_groups_flat


def _is_share(value: Any) -> bool:
    """Whether a part of an optimizer's state has a number for each number of a weight."""
    return isinstance(value, Tensor) and value.dim() > 0
