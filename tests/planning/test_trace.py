"""What is counted, against what is really kept."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_modules import FullFT, LoRA, PPOPolicy, SoftPrompt
from lightning_modules.ppo.advantages import RLOO
from lightning_modules.ppo.config import PPOConfig
from lightning_modules.ppo.policy_kinds import (
    FullPolicy,
    LoRAPolicy,
    SoftPromptPolicy,
)
from lightning_modules.ppo.token_scores import encode
from lightning_modules.ppo.update import minibatch_loss
from planning.batches import make_batch, make_experience, make_prompts
from planning.gpu import fused_kernels
from planning.parts import (
    ATTENTION,
    GRADIENTS,
    OTHER,
    WEIGHTS,
    Computation,
    Lengths,
)
from planning.trace import LiveBytes, place
from tests.batches import settle
from tests.planning.tracing import passing, step_of, total


def test_live_bytes_of_a_hand_worked_step() -> None:
    """x [4, 8] -> Linear(8, 16) -> relu -> sum: what lives at each moment, in bytes."""
    live = LiveBytes()
    with torch.device("meta"):
        layer = nn.Linear(8, 16, bias=False)
    with live:
        place(layer)
        live.name(WEIGHTS, layer.parameters())
        x = torch.ones(4, 8)
        assert live.now == {WEIGHTS: 8 * 16 * 4, OTHER: 4 * 8 * 4}
        with live.watch() as peak:
            loss = layer(x).relu().sum()
            # The product went when relu had made its own output, which backward needs.
            assert live.total == 512 + 128 + 4 * 16 * 4 + 4
            loss.backward()
        # Product and output of relu together: the most that lived at once, before backward.
        assert live.total == 512 + 128 + 512 + 4
        assert total(peak) >= 512 + 128 + 2 * 256
        live.name(GRADIENTS, [layer.weight.grad])
        assert live.now[GRADIENTS] == 512
        layer.weight.grad = None
        assert live.now[GRADIENTS] == 0
        view = x[:2]
        del x
        assert live.now[OTHER] == 128 + 4  # the view holds the whole storage
        del view, loss
    assert live.now[OTHER] == 0


def test_questions_for_numbers_are_answered_by_the_most_there_can_be() -> None:
    with LiveBytes():
        mask = torch.ones(3, 7).bool()
        assert int(mask.sum(dim=1).max()) == 7
        assert int(mask.long().sum()) == 21
        assert mask.nonzero().shape == (21, 2)
        assert torch.zeros(3, 7, 5)[mask].shape == (21, 5)
        assert not mask.all()  # else a mask would be left out
        assert float(torch.zeros(())) == 1.0


def saved_bytes(module: Any, compute_loss: Callable[[], Tensor]) -> int:
    """What autograd really keeps for the backward pass, weights left out, each storage once."""
    kept: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in module.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = compute_loss()
    assert loss.requires_grad
    return sum(kept.values())


@pytest.fixture
def all_by_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small products too, as the large ones of real models."""
    monkeypatch.setattr("lightning_modules.linear.LEAST_WORK", 0)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize(
    "make",
    [
        lambda t5, rate: FullFT(t5, dropout=rate),
        lambda t5, rate: LoRA(backbone=t5, r=4, dropout=rate, lora_dropout=rate),
        lambda t5, rate: SoftPrompt(backbone=t5, virtual_tokens=8, dropout=rate),
    ],
    ids=["full", "lora", "soft_prompt"],
)
def test_activations_are_what_autograd_really_keeps(
    t5: str, make: Any, dropout: float, all_by_onednn: None
) -> None:
    """The plan's forward pass holds what the real one keeps, and a little that passes."""
    module = make(t5, dropout)
    lengths = Lengths(batch_size=4, eval_batch_size=1, source=64, target=32)
    planned = passing(step_of(module, lengths))
    batch = make_batch(module, 4, lengths)
    batch["attention_mask"][0, -3:] = 0  # some padding, as batches have
    kept = saved_bytes(settle(module), lambda: module.token_loss(batch)[0])
    assert kept <= planned <= 1.1 * kept + 4 * 4 * 32 * 259  # and a copy of the logits


@pytest.mark.parametrize(
    "settings",
    [
        {"policy": LoRAPolicy(r=4)},
        {"policy": LoRAPolicy(r=4, target_modules=r".*decoder.*\.(q|v)"), "advantage": RLOO()},
        {"policy": SoftPromptPolicy(virtual_tokens=8)},
        {"policy": FullPolicy()},
    ],
    ids=["lora", "lora_in_decoder", "soft_prompt", "full"],
)
def test_ppos_activations_are_what_autograd_really_keeps(
    t5: str, roberta: str, settings: dict[str, Any], all_by_onednn: None
) -> None:
    config = PPOConfig(samples=2, max_new_tokens=32, minibatch_size=8, microbatch_size=4)
    module = PPOPolicy(t5, roberta, ppo=config, **settings)
    lengths = Lengths(batch_size=8, eval_batch_size=1, source=64, target=8)
    planned = passing(step_of(module, lengths))
    prompts = make_prompts(8, lengths.source)
    prompts.attention_mask[0, -3:] = 0
    settle(module)
    with torch.no_grad():
        shares = module.shares_encoder
        encoded = encode(module.model, prompts, projects=True) if shares else None
    part = make_experience(module, lengths, encoded)
    part.rollout.prompts.attention_mask[0, -3:] = 0

    def compute_loss() -> Tensor:
        return minibatch_loss(module.model, module.value_head, part, config)[0]

    kept = saved_bytes(module, compute_loss)
    # Of all prompts, over all epochs: the states, and keys and values of two layers.
    shared = 0 if encoded is None else 8 * 64 * (1 + 4) * 32 * 4
    gradients = 2 * 4 * 4 * 32 * 259  # of the log-softmax and of the logits
    assert kept <= planned <= 1.1 * kept + shared + gradients


def test_checkpointed_blocks_are_computed_again_by_a_gpus_kernels(t5: str) -> None:
    lengths = Lengths(batch_size=4, eval_batch_size=1, source=64, target=32)
    kept = [
        passing(step_of(FullFT(t5, gradient_checkpointing=on), lengths, Computation(gpu=True)))
        for on in (False, True)
    ]
    assert kept[1] < kept[0]


def test_a_gpu_keeps_neither_attention_weights_nor_noise(t5: str) -> None:
    lengths = Lengths(batch_size=4, eval_batch_size=1, source=64, target=32)
    cpu, gpu = (step_of(FullFT(t5), lengths, Computation(gpu=gpu)) for gpu in (False, True))
    assert gpu[ATTENTION] < 0.7 * cpu[ATTENTION]
    assert passing(gpu) < 0.7 * passing(cpu)


def test_fused_kernels_have_the_shapes_and_gradients_of_the_real_ones() -> None:
    query = torch.randn(2, 3, 5, 8, requires_grad=True)
    key, mask = torch.randn(2, 3, 7, 8), torch.zeros(1, 3, 5, 7, requires_grad=True)
    with fused_kernels():
        output = nn.functional.scaled_dot_product_attention(query, key, key, attn_mask=mask)
        dropped = nn.functional.dropout(output, 0.5)
        same = nn.functional.dropout(output, 0.5, training=False)
    assert output.shape == query.shape
    assert same is output
    dropped.sum().backward()
    assert query.grad is not None
    assert query.grad.shape == query.shape
    assert mask.grad is not None
    assert mask.grad.shape == mask.shape
