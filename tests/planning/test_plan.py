"""Plans on several devices, and as they are shown."""

from typing import Any

import pytest

from lightning_modules import FullFT
from planning.memory import HEAP_SHARE, Plan, Setting
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


def placed(strategy: Any, bf16: bool = False) -> dict[str, int]:
    return place_on_devices(HUNDRED, Size(100, largest_layer=40), strategy, 4, bf16)


def test_strategies_divide_what_they_say() -> None:
    assert placed("single") == HUNDRED
    assert placed("ddp") == HUNDRED | {BUFFERS: 400}
    whole = {WEIGHTS: 100, GRADIENTS: 100, OPTIMIZER: 200}
    assert placed("fsdp") == HUNDRED | whole | {BUFFERS: 3 * 40}
    assert placed("fsdp", bf16=True) == HUNDRED | whole | {BUFFERS: 3 * 20}


@pytest.mark.parametrize(
    ("text", "devices", "name"),
    [
        ("auto", 1, "single"), ("auto", 2, "ddp"), ("ddp_find_unused_parameters_true", 2, "ddp"),
        ("fsdp", 2, "fsdp"), ("lightning.pytorch.strategies.FSDPStrategy", 8, "fsdp"),
    ],
)  # fmt: skip
def test_strategies_are_known_by_lightnings_names(text: str, devices: int, name: str) -> None:
    assert find_strategy(text, devices) == name


def test_a_strategy_that_training_refuses_is_refused() -> None:
    with pytest.raises(ValueError, match="ddp or fsdp"):
        find_strategy("deepspeed_stage_2", 2)


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

    return give_advice(Fixed(method, Traced(0, Size(0, 0), {}), Setting(FP32), SHORT, 0), 259)


@pytest.mark.parametrize("part", [part for part in PARTS if part != PROCESS])
def test_there_is_advice_on_every_item(part: str) -> None:
    assert "1.00 GiB go to" in advice(part)


def test_advice_names_settings_that_the_phase_has() -> None:
    assert "accumulate_grad_batches" in advice(OTHER)
    assert "microbatch_size" in advice(OTHER, "PPO")
    assert "accumulate_grad_batches" not in advice(OTHER, "PPO")  # PPO refuses it
    assert "eval_batch_size" in advice(CACHE, phase="evaluation, generating")
    assert "max_new_tokens" in advice(CACHE, "PPO", "rollout, sampling")
