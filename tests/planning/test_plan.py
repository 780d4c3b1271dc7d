"""Plans on several devices, and as they are shown."""

from typing import Any

import pytest
from transformers import T5ForConditionalGeneration

from lightning_modules import FullFT
from planning.memory import HEAP_SHARE, Plan, Setting
from planning.models import count_units
from planning.parts import (
    BUFFERS,
    CACHE,
    COPIES,
    GRADIENTS,
    HEAP,
    OPTIMIZER,
    OTHER,
    PARTS,
    PROCESS,
    WEIGHTS,
    Computation,
)
from planning.phases import Traced, trace_module
from planning.strategies import Size, find_strategy, place_on_devices
from planning.tables import RULE, RULE_WEIGHTS, give_advice
from tests.planning.tracing import FP32, SHORT, passing, total

HUNDRED = {
    **dict.fromkeys(PARTS, 0),
    WEIGHTS: 400, GRADIENTS: 400, OPTIMIZER: 800, COPIES: 100, OTHER: 1000,
}  # fmt: skip
"""Of 100 parameters, all trained by Adam in fp32."""


def placed(strategy: Any, phase: str = "forward and backward") -> dict[str, int]:
    size = Size(100, root=60, block=40, root_gradients=50, block_gradients=30)
    return place_on_devices(HUNDRED, size, strategy, 4, phase)


def test_strategies_divide_what_they_say() -> None:
    assert placed("single") == HUNDRED
    assert placed("ddp") == HUNDRED | {BUFFERS: 400}
    shares = {WEIGHTS: 100, GRADIENTS: 100, OPTIMIZER: 200}
    assert placed("fsdp") == HUNDRED | shares | {BUFFERS: 60 + 2 * 40 + 50 + 30}
    for phase in ("evaluation", "evaluation, generating", "rollout, sampling"):
        assert placed("fsdp", phase) == HUNDRED | shares | {WEIGHTS: 400 + 100, BUFFERS: 60}


def test_zero_divides_what_it_says() -> None:
    """With DeepSpeed's copy of the trained share; buckets are the 400 bytes of all gradients."""
    shares = {GRADIENTS: 100, OPTIMIZER: 200 + 100}
    assert placed("zero2") == HUNDRED | shares | {BUFFERS: 2 * 400 + 100}
    assert placed("zero2", "evaluation") == HUNDRED | shares
    shares[WEIGHTS] = 100
    assert placed("zero3") == HUNDRED | shares | {BUFFERS: 400 + 2 * 400}
    gathered = {WEIGHTS: 400 + 100, BUFFERS: 400 + 400}
    assert placed("zero3", "rollout, sampling") == HUNDRED | shares | gathered


@pytest.mark.parametrize("strategy", ["zero2", "zero3"])
def test_zero_divides_nothing_without_an_optimizer(strategy: Any) -> None:
    alone = HUNDRED | {OPTIMIZER: 0}
    assert place_on_devices(alone, Size(100, 60, 40, 50, 30), strategy, 4, "evaluation") == alone


def test_units_are_those_that_are_gathered(t5: str) -> None:
    model = T5ForConditionalGeneration.from_pretrained(t5)
    model.lm_head.requires_grad_(False)
    # 259 tokens, width 32, and one norm for encoder and decoder each.
    root, head = 4 * (2 * 259 * 32 + 2 * 32), 4 * 259 * 32
    # The first decoder block: self- and cross-attention, three feed-forward matrices, three norms,
    # and the bias of 32 buckets for 4 heads.
    block = 4 * (2 * 4 * 32 * 32 + 3 * 32 * 64 + 3 * 32 + 32 * 4)
    assert count_units(model) == (root, block, root - head, block)


@pytest.mark.parametrize(
    ("text", "devices", "name"),
    [
        ("auto", 1, "single"), ("auto", 2, "ddp"), ("ddp_find_unused_parameters_true", 2, "ddp"),
        ("zero2", 2, "zero2"), ("lightning_modules.zero.Zero3Strategy", 8, "zero3"),
        ("fsdp2", 2, "fsdp"), ("lightning_modules.strategies.FullyShardedStrategy", 8, "fsdp"),
    ],
)  # fmt: skip
def test_strategies_are_known_by_lightnings_names(text: str, devices: int, name: str) -> None:
    assert find_strategy(text, devices) == name


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("deepspeed_stage_2", "take zero2 or zero3"), ("fsdp", "take ddp, or fsdp2"),
        ("ModelParallelStrategy", "take ddp, or fsdp2"),
    ],
)  # fmt: skip
def test_a_strategy_that_training_refuses_is_refused(name: str, remedy: str) -> None:
    with pytest.raises(ValueError, match=remedy):
        find_strategy(name, 2)


def test_the_heap_and_the_process_are_a_cpus(t5: str) -> None:
    traced = trace_module(FullFT(t5), SHORT, FP32)
    cpu = Plan("full", traced, Setting(FP32), SHORT, process=1000)
    gpu = Plan("full", traced, Setting(Computation(gpu=True)), SHORT, process=0)
    assert cpu.parts[HEAP] == int(HEAP_SHARE * (passing(cpu.parts) + cpu.parts[CACHE]))
    assert cpu.parts[PROCESS] == 1000
    assert gpu.total == cpu.total - cpu.parts[HEAP] - 1000
    assert tuple(cpu.parts) == PARTS
    assert cpu.total == max(total(phase) for phase in cpu.phases.values())


def test_the_rule_of_thumb_is_the_originals() -> None:
    assert sum(RULE.values()) * 247_577_856 == 5_941_868_544  # 5.5 GiB
    assert RULE["weights"] * 247_577_856 == 990_311_424
    assert [size * 247_577_856 for size in RULE_WEIGHTS.values()] == [
        495_155_712, 247_577_856, 123_788_928,
    ]  # fmt: skip


def advice(part: str, method: str = "full", phase: str = "forward and backward") -> str:
    class Fixed(Plan):
        @property
        def parts(self) -> dict[str, int]:
            return {part: 2**30, PROCESS: 2**31}

        peak = phase

    return give_advice(Fixed(method, Traced(0, Size(*[0] * 5), {}), Setting(FP32), SHORT, 0), 259)


@pytest.mark.parametrize("part", [part for part in PARTS if part != PROCESS])
def test_there_is_advice_on_every_item(part: str) -> None:
    assert "1.00 GiB go to" in advice(part)


def test_advice_names_settings_that_the_phase_has() -> None:
    assert "accumulate_grad_batches" in advice(OTHER)
    assert "microbatch_size" in advice(OTHER, "PPO")
    assert "accumulate_grad_batches" not in advice(OTHER, "PPO")  # PPO refuses it
    assert "eval_batch_size" in advice(CACHE, phase="evaluation, generating")
    assert "max_new_tokens" in advice(CACHE, "PPO", "rollout, sampling")
