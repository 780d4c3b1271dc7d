"""DeepSpeed's engine by itself: what is read and changed in it is what its own functions show."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_modules.gradients import clip, gradient_norm, gradients
from lightning_modules.zero_engine import Divided, make_engine
from lightning_modules.zero_optimizer import DividedOptimizer
from lightning_modules.zero_weights import gathered, is_away, put_weight
from tests.launching import last_words, run_ranks
from tests.ranks import count_here, whole_gradient
from tests.test_strategies import needs_deepspeed

pytestmark = needs_deepspeed

CPU = torch.device("cpu")


class Odd(nn.Module):
    """Sizes that two ranks cannot share evenly, and a part that not every pass comes to."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.rare = nn.Linear(3, 5), nn.Linear(5, 1), nn.Linear(3, 1)

    def forward(self, rows: Tensor, with_rare: bool) -> Tensor:
        found = self.second(self.first(rows).tanh())
        return found + self.rare(rows) if with_rare else found


def make_optimizer(model: Odd) -> torch.optim.Optimizer:
    """In two groups with rates of their own."""
    late = {"params": list(model.rare.parameters()), "lr": 0.05}
    early = {"params": [*model.first.parameters(), *model.second.parameters()]}
    return torch.optim.AdamW([early, late], lr=0.01, weight_decay=0.1)


def rows(number: int) -> Tensor:
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(number))


def alone(steps: int, model: Odd, optimizer: Any) -> None:
    """Take steps, each on two micro-batches, scaled and clipped."""
    for step in range(steps):
        optimizer.zero_grad()
        for part in range(2):
            model(rows(2 * step + part), with_rare=True).square().mean().backward()
        for gradient in gradients(optimizer):
            gradient.mul_(0.5)
        clip(optimizer, 0.1, None, gradient_norm(optimizer))
        optimizer.step()


class Shared:
    """The same model by an engine on two ranks; each sees every second row."""

    def __init__(self, stage: Any, state: dict[str, Any] | None = None) -> None:
        self.model = Odd()
        self.divided = Divided([self.model])
        optimizer = make_optimizer(self.model)
        self.optimizer: DividedOptimizer = make_engine(self.divided, optimizer, stage, CPU, 0)
        if state is not None:
            self.optimizer.spread_state(state)

    def backward(self, number: int, with_rare: bool = True) -> None:
        mine = rows(number)[torch.distributed.get_rank() :: 2]
        found = self.divided.compute(lambda: self.model(mine, with_rare).square().mean())
        self.optimizer.backward(found)

    def step(self, number: int) -> None:
        self.optimizer.zero_grad()
        for part in range(2):
            self.backward(2 * number + part)
        for gradient in gradients(self.optimizer):
            gradient.mul_(0.5)
        clip(self.optimizer, 0.1, None, gradient_norm(self.optimizer))
        self.optimizer.step()

    def weights(self) -> list[Tensor]:
        with gathered(self.model.parameters()):
            return [weight.detach().clone() for weight in self.model.parameters()]


def on_two_ranks(work: Callable[[], None], folder: Path) -> None:
    def go() -> None:
        torch.distributed.init_process_group("gloo")
        work()
        torch.distributed.destroy_process_group()

    codes = run_ranks(go, folder)
    assert codes == [0, 0], last_words(folder)


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-7)


def one_device(steps: int) -> tuple[Odd, Any]:
    model = Odd()
    optimizer = make_optimizer(model)
    alone(steps, model, optimizer)
    return model, optimizer


@pytest.mark.parametrize("stage", [2, 3])
def test_an_engine_takes_the_steps_of_one_device(stage: int, tmp_path: Path) -> None:
    def work() -> None:
        steps_scale_and_clip(stage)
        a_state_goes_on_elsewhere(stage)
        dropped_gradients_are_gone(stage)
        weights_are_set(stage)
        weights_are_given_back(stage)

    on_two_ranks(work, tmp_path)


def steps_scale_and_clip(stage: int) -> None:
    shared, (model, optimizer) = Shared(stage), one_device(0)
    for number in range(2):
        shared.optimizer.zero_grad()
        optimizer.zero_grad()
        for part in (0, 1):
            shared.backward(2 * number + part)
            model(rows(2 * number + part), with_rare=True).square().mean().backward()
        for one in (shared.optimizer, optimizer):
            for gradient in gradients(one):
                gradient.mul_(0.5)
            norm = gradient_norm(one)
            assert norm > 0.1, "nothing is clipped"
            clip(one, 0.1, None, norm)
        # Changed in place, they are what DeepSpeed itself says they are.
        its = [whole_gradient(weight) for weight in shared.model.parameters()]
        assert_same(its, [weight.grad for weight in model.parameters()])  # type: ignore[misc]
        shared.optimizer.step()
        optimizer.step()
        assert_same(shared.weights(), list(model.parameters()))
    here = sum(map(count_here, shared.model.parameters()))
    total = sum(weight.numel() for weight in model.parameters())
    assert here == total if stage == 2 else here < 0.7 * total
    assert not any(map(is_away, model.parameters()))


def a_state_goes_on_elsewhere(stage: int) -> None:
    shared, (model, optimizer) = Shared(stage), one_device(2)
    for number in range(2):
        shared.step(number)
    kept = shared.optimizer.gather_state(lambda value: value.clone())
    expected = optimizer.state_dict()
    assert kept["param_groups"] == expected["param_groups"]
    for number, state in expected["state"].items():
        assert_same(list(kept["state"][number].values()), list(state.values()))
    # Back, with the weights: another step is that of one device too.
    again = Shared(stage, expected)
    for weight, value in zip(again.model.parameters(), model.parameters(), strict=True):
        put_weight(weight, value.detach())
    again.step(2)
    other = Odd()
    other.load_state_dict(model.state_dict())
    further = make_optimizer(other)
    further.load_state_dict(expected)
    further.zero_grad()
    for part in (4, 5):
        other(rows(part), with_rare=True).square().mean().backward()
    for gradient in gradients(further):
        gradient.mul_(0.5)
    clip(further, 0.1, None, gradient_norm(further))
    further.step()
    assert_same(again.weights(), list(other.parameters()))


def dropped_gradients_are_gone(stage: int) -> None:
    shared = Shared(stage)
    start = shared.weights()
    shared.backward(0)
    shared.optimizer.zero_grad()
    shared.optimizer.step()
    assert_same(shared.weights(), start)
    assert gradients(shared.optimizer) == []
    # Nor does a weight that the next pass does not come to have its last gradient still.
    shared.backward(1, with_rare=False)
    assert gradients(shared.optimizer)
    gradient = whole_gradient(shared.model.rare.weight)
    assert gradient is not None
    assert torch.count_nonzero(gradient) == 0


def weights_are_set(stage: int) -> None:
    shared = Shared(stage)
    with torch.no_grad():
        values = [torch.full_like(weight, 3.0) for weight in Odd().parameters()]
    for weight, value in zip(shared.model.parameters(), values, strict=True):
        put_weight(weight, value)
    assert_same(shared.weights(), values)
    shared.step(0)  # from there, and not from a copy of what was there before
    assert all((weight - 3.0).abs().max() < 0.4 for weight in shared.weights())


def weights_are_given_back(stage: int) -> None:
    shared, (model, _) = Shared(stage), one_device(2)
    for number in range(2):
        shared.step(number)
    shared.optimizer.release()
    assert_same(list(shared.model.parameters()), list(model.parameters()))
    # Nobody is asked for anything any more: this rank goes on alone.
    shared.model.zero_grad()
    shared.model(rows(9), with_rare=True).sum().backward()
    model.zero_grad()
    model(rows(9), with_rare=True).sum().backward()
    found = [weight.grad for weight in shared.model.parameters()]
    assert_same(found, [weight.grad for weight in model.parameters()])  # type: ignore[misc]
