"""Plans from a run's settings: of its own method, and of the others for comparison."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from lightning_modules import FullFT, InContext, LoRA, PPOPolicy, RewardModel, SoftPrompt
from lightning_modules.base import BaseModule
from planning.memory import Plan, Setting, measure_process
from planning.parts import Computation, Lengths
from planning.phases import trace_module
from planning.shapes import HATE_CLASSIFIER
from planning.strategies import SHARED, find_strategy

METHODS: dict[type[BaseModule], str] = {
    InContext: "prompting", FullFT: "full", LoRA: "LoRA", SoftPrompt: "soft prompt",
    PPOPolicy: "PPO", RewardModel: "reward model",
}  # fmt: skip
COMPARED: tuple[type[BaseModule], ...] = (FullFT, LoRA, SoftPrompt, PPOPolicy)

CHARS_PER_TOKEN = 3
"""Fewest characters of a dialogue that a token stands for on average, to turn a limit in
characters into one in tokens: DialogSum has 3.6 with T5's tokenizer."""

PROMPT_TOKENS = 32
"""Room for the words around a dialogue in such a limit."""


def name_method(module: BaseModule) -> str:
    """Give the name of a module's method in the tables."""
    known = [name for kind, name in METHODS.items() if type(module) is kind]
    return known[0] if known else type(module).__name__


def find_setting(trainer: Any) -> Setting:
    """Say where a run takes place.

    Args:
        trainer: Settings of the Trainer, as attributes.
    """
    asked = str(trainer.accelerator).lower()
    gpu = torch.cuda.is_available() if asked == "auto" else asked not in ("cpu", "tpu")
    devices = _count_devices(trainer.devices, gpu) * int(trainer.num_nodes or 1)
    strategy = getattr(trainer.strategy, "class_path", trainer.strategy)
    computation = Computation(
        bf16=str(trainer.precision) == "bf16-mixed",
        gpu=gpu,
        clip=trainer.gradient_clip_val is not None,
    )
    return Setting(computation, find_strategy(str(strategy), devices), devices)


def find_lengths(datamodule: Any) -> Lengths:
    """Say how large the batches of a datamodule can be."""
    batch_size = datamodule.batch_size
    source = getattr(datamodule, "max_source_length", None) or datamodule.max_length
    longest = getattr(datamodule, "max_dialogue_chars", None)
    if longest is not None and datamodule.shots == 0:
        source = min(source, longest // CHARS_PER_TOKEN + PROMPT_TOKENS)
    return Lengths(
        batch_size=batch_size,
        eval_batch_size=getattr(datamodule, "eval_batch_size", batch_size),
        source=source,
        target=getattr(datamodule, "max_target_length", 0),
    )


def plan_run(
    module: BaseModule,
    setting: Setting,
    lengths: Lengths,
    judge: str | None,
    trains: bool = True,
) -> Plan:
    """Plan one method in one setting.

    Args:
        module: As it was built, nothing loaded.
        setting: Where it runs.
        lengths: Its largest batches.
        judge: The toxicity classifier; None is none.
        trains: Whether it trains; else it is only evaluated.
    """
    traced = trace_module(module, lengths, setting.computation, judge, trains)
    process = measure_process(setting.computation.gpu)
    return Plan(name_method(module), traced, setting, lengths, process)


def find_compared(module: BaseModule, judge: str | None) -> list[BaseModule]:
    """List the run's own module and, with their defaults on its backbone, the others.

    A reward model's backbone is a classifier, which none of the others can use.
    """
    if not module.generates:
        return [module]
    own = [] if isinstance(module, COMPARED) else [module]
    return [*own, *(_like(module, kind, judge) for kind in COMPARED)]


def _like(module: BaseModule, kind: type[BaseModule], judge: str | None) -> BaseModule:
    """Give the module itself where it is of a kind, or else one of that kind on its backbone."""
    if isinstance(module, kind):
        return module
    settings: dict[str, Any] = {
        "backbone": module.backbone_name,
        "optimizer": module.optimizer,
        "decoding": getattr(module, "decoding", None),
    }
    if kind is PPOPolicy:
        settings["reward_model"] = judge or HATE_CLASSIFIER
    else:
        settings["dropout"] = module.dropout
    made: Any = kind(**settings)
    made.gradient_checkpointing = getattr(module, "gradient_checkpointing", False)
    return made


def other_settings(setting: Setting) -> Iterator[Setting]:
    """Give every precision in every strategy, on as many devices as asked for, or else on 8."""
    devices = setting.devices if setting.devices > 1 else 8
    for bf16 in (False, True):
        computation = replace(setting.computation, bf16=bf16)
        yield Setting(computation)
        for strategy in SHARED:
            yield Setting(computation, strategy, devices)


def _count_devices(devices: Any, gpu: bool) -> int:
    if devices in ("auto", None):
        return max(1, torch.cuda.device_count()) if gpu else 1
    if isinstance(devices, list):
        return len(devices)
    text = str(devices)
    if "," in text:
        return len([part for part in text.split(",") if part.strip()])
    return max(1, torch.cuda.device_count()) if text == "-1" else int(text)
