"""What a run's phases take, by part."""

from typing import Any

import pytest
import torch

from lightning_modules import FullFT, InContext, LoRA, PPOPolicy
from lightning_modules.adapters import count_parameters
from lightning_modules.ppo.config import PPOConfig
from lightning_modules.ppo.policy_kinds import FullPolicy
from planning.parts import (
    ATTENTION,
    CACHE,
    COPIES,
    GRADIENTS,
    JUDGES,
    LOGITS,
    OPTIMIZER,
    OTHER,
    WEIGHTS,
    Computation,
    Lengths,
)
from planning.phases import trace_module
from planning.shapes import build_classifier, find_blueprint
from tests.batches import settle
from tests.planning.tracing import FP32, SHORT, step_of, total


def test_weights_gradients_and_adam_are_four_four_and_eight_bytes_a_parameter(t5: str) -> None:
    traced = trace_module(FullFT(t5), SHORT, FP32)
    parts = traced.phases["forward and backward"]
    assert parts[WEIGHTS] == 4 * traced.total
    assert parts[GRADIENTS] == 4 * traced.total  # of the step before, until the backward pass
    steps = 4 * len(list(settle(FullFT(t5)).parameters()))  # Adam counts for each tensor
    assert parts[OPTIMIZER] == 8 * traced.total + steps


@pytest.mark.parametrize(
    ("optimizer", "size"),
    [
        (lambda weights: torch.optim.SGD(weights, lr=0.1), 0.0),
        (lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9), 4.0),
        (lambda weights: torch.optim.AdamW(weights, lr=0.1), 8.0),
        (lambda weights: torch.optim.Adafactor(weights, lr=0.1), 0.3),  # a row and a column each
    ],
    ids=["sgd", "momentum", "adamw", "adafactor"],
)
def test_the_optimizer_is_the_one_that_is_asked_for(t5: str, optimizer: Any, size: float) -> None:
    traced = trace_module(FullFT(t5, optimizer=optimizer), SHORT, FP32)
    found = traced.phases["forward and backward"][OPTIMIZER] / traced.total
    assert found == pytest.approx(size, abs=0.15)


def test_frozen_weights_have_neither_gradients_nor_state_but_activations(t5: str) -> None:
    lora = trace_module(LoRA(backbone=t5, r=4), SHORT, FP32)
    parts = lora.phases["optimizer step"]
    assert parts[GRADIENTS] == 4 * lora.size.trainable
    assert parts[OPTIMIZER] < 9 * lora.size.trainable
    parts, full = lora.phases["forward and backward"], step_of(FullFT(t5))
    assert parts[OTHER] + parts[ATTENTION] > 0.6 * (full[OTHER] + full[ATTENTION])


def test_bf16_keeps_fp32_masters_and_adds_copies(t5: str) -> None:
    exact, mixed = step_of(FullFT(t5)), step_of(FullFT(t5), how=Computation(bf16=True))
    assert mixed[WEIGHTS] == exact[WEIGHTS]
    assert mixed[OPTIMIZER] == exact[OPTIMIZER]
    assert exact[COPIES] == 0 < mixed[COPIES] <= exact[WEIGHTS] // 2


def test_logits_are_counted_as_what_they_are(t5: str) -> None:
    """fp32 logits [4, 32, 259] and their log-softmax live when the loss is taken."""
    lengths = Lengths(batch_size=1, eval_batch_size=4, source=8, target=32)
    evaluation = trace_module(InContext(t5), lengths, FP32).phases["evaluation"]
    assert evaluation[LOGITS] == 2 * 4 * 32 * 259 * 4


def test_the_key_value_cache_of_generation(t5: str) -> None:
    """2 (k and v) x 2 layers x rows x (source + new tokens) x 32 wide x 4 bytes."""
    module = InContext(t5)
    lengths = Lengths(batch_size=1, eval_batch_size=3, source=16, target=8)
    found = trace_module(module, lengths, FP32).phases["evaluation, generating"]
    assert found[CACHE] == 2 * 2 * 3 * (16 + 128) * 32 * 4
    half = trace_module(module, lengths, Computation(bf16=True)).phases["evaluation, generating"]
    assert half[CACHE] == found[CACHE] // 2


def test_ppo_has_a_reward_model_and_rollouts_of_the_whole_batch(
    t5: str, roberta: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning_modules.linear.LEAST_WEIGHTS", 2**10)
    settings = PPOConfig(max_new_tokens=32, minibatch_size=8)
    lengths = Lengths(batch_size=32, eval_batch_size=2, source=8, target=8)
    module = PPOPolicy(t5, roberta, ppo=settings)
    alone = trace_module(module, lengths, FP32)
    judged = trace_module(module, lengths, FP32, judge=roberta)
    one = 4 * count_parameters(build_classifier(find_blueprint(roberta, "classifier")))[1]
    for phase in alone.phases.values():
        assert phase[JUDGES] == one
    assert judged.phases["rollout, reward"][JUDGES] == 2 * one  # the toxicity's is its own
    sampling = alone.phases["rollout, sampling"]
    assert sampling[CACHE] == 2 * 2 * 32 * (8 + 32) * 32 * 4
    # 2 layers of 8 x 32 x 32 and 3 x 32 x 64, the head, and 8 updates of rank 32.
    assert sampling[COPIES] == 4 * (2 * (8 * 1024 + 3 * 2048) + 259 * 32 + 8 * 2 * 1024)
    # Eight responses of 32 tokens are scored together, and eight are learnt from together.
    for phase in ("rollout, scoring", "forward and backward"):
        assert 2 * 8 * 32 * 259 * 4 <= alone.phases[phase][LOGITS] < 32 * 32 * 259 * 4


def test_ppo_scores_its_tokens_again_where_the_samplers_figures_are_not_taken(
    t5: str, roberta: str
) -> None:
    """The entropy of the policy's own tokens takes more than the reference's log-probabilities."""

    def scoring(reuse: bool | None, bf16: bool = False) -> int:
        settings = PPOConfig(max_new_tokens=64, minibatch_size=2, reuse_sampler=reuse)
        module = PPOPolicy(t5, roberta, ppo=settings)
        return total(trace_module(module, SHORT, Computation(bf16)).phases["rollout, scoring"])

    assert scoring(None) < scoring(False)
    assert scoring(None, bf16=True) > scoring(True, bf16=True)


def test_ppo_drops_its_gradients_before_a_minibatch_and_keeps_them_within(
    t5: str, roberta: str
) -> None:
    """Where the loss has just been computed; Lightning's closure still has them there."""
    lengths = Lengths(batch_size=4, eval_batch_size=1, source=64, target=32)
    for microbatch, share in ((None, 0), (2, 1)):
        settings = PPOConfig(max_new_tokens=64, microbatch_size=microbatch)
        module = PPOPolicy(t5, roberta, policy=FullPolicy(), ppo=settings)
        traced = trace_module(module, lengths, FP32)
        gradients = traced.phases["forward and backward"][GRADIENTS]
        assert gradients == pytest.approx(4 * share * traced.size.trainable, rel=0, abs=60_000)
    assert step_of(FullFT(t5), lengths)[GRADIENTS] == 4 * 66_368


def test_gradient_checkpointing_trades_activations(t5: str) -> None:
    lengths = Lengths(batch_size=4, eval_batch_size=1, source=64, target=32)
    module: Any = FullFT(t5)
    module.gradient_checkpointing = True
    kept, saved = step_of(FullFT(t5), lengths), step_of(module, lengths)
    assert saved[OTHER] + saved[ATTENTION] < 0.75 * (kept[OTHER] + kept[ATTENTION])


@pytest.mark.parametrize("field", ["batch_size", "source", "target"])
def test_more_of_anything_takes_more(t5: str, field: str) -> None:
    sizes = {"batch_size": 4, "eval_batch_size": 1, "source": 32, "target": 32}
    less, more = Lengths(**sizes), Lengths(**(sizes | {field: 2 * sizes[field]}))
    assert total(step_of(FullFT(t5), more)) > 1.2 * total(step_of(FullFT(t5), less))
