"""Plans from a command's settings: of its own run, and of the other methods in its place."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import rich
import torch
from rich.console import Console

from datamodules.batching import MULTIPLE
from lightning_modules import (
    DPO,
    Classifier,
    FullFT,
    InContext,
    LoRA,
    PPOPolicy,
    RewardModel,
    SoftPrompt,
)
from lightning_modules.base import BaseModule
from lightning_modules.strategies import name_strategy
from planning.measure import resident_bytes
from planning.memory import Plan, Setting
from planning.parts import Computation, Lengths
from planning.phases import trace_module
from planning.shapes import HATE_CLASSIFIER, find_blueprint
from planning.strategies import LABELS, find_strategy
from planning.tables import (
    give_advice,
    make_parts_table,
    make_phases_table,
    make_rule_table,
    make_settings_table,
    precision,
)

logger = logging.getLogger(__name__)

METHODS: dict[type[BaseModule], str] = {
    InContext: "prompting", FullFT: "full", LoRA: "LoRA", SoftPrompt: "soft prompt",
    PPOPolicy: "PPO", DPO: "DPO", RewardModel: "reward model", Classifier: "classifier",
}  # fmt: skip
COMPARED: tuple[type[BaseModule], ...] = (FullFT, LoRA, SoftPrompt, PPOPolicy)

PRECISIONS = (False, True)
"""Whether under bf16 autocast."""

CHARS_PER_TOKEN = 3
"""Fewest characters of a dialogue that a token stands for on average, to turn a limit in
characters into one in tokens: DialogSum has 3.6 with T5's tokenizer."""

PROMPT_TOKENS = 32
"""Room for the words around a dialogue in such a limit."""

_WIDTH = 120


def make_plan(module: BaseModule, datamodule: Any, settings: Any, trains: bool) -> Plan | None:
    """Plan a run that is about to start; None, with a warning, where that cannot be done.

    Args:
        module: As it was built, nothing loaded.
        datamodule: Likewise.
        settings: Those of the command, as attributes.
        trains: Whether the command is a fit.
    """
    try:
        return plan_run(
            module,
            find_setting(settings.trainer),
            find_lengths(datamodule),
            settings.toxicity.get("model"),
            trains,
        )
    except (ValueError, AttributeError, TypeError, LookupError, RuntimeError, OSError) as error:
        # Models and data of others need not be such as can be traced; they run all the same.
        logger.warning("The memory of this run could not be planned: %s", error)
        return None


def print_plans(module: BaseModule, datamodule: Any, settings: Any, trains: bool) -> None:
    """Print the plans of a run and of the other methods in its place; loads and writes nothing.

    Args:
        module: As it was built, nothing loaded.
        datamodule: Likewise.
        settings: Those of the command, as attributes.
        trains: Whether the command is a fit.

    Raises:
        ValueError: If the config of a model cannot be had.
    """
    setting, lengths = find_setting(settings.trainer), find_lengths(datamodule)
    judge = settings.toxicity.get("model")
    own = name_method(module)
    modules = find_compared(module, judge)
    console = rich.get_console()
    if not console.is_terminal:
        console = Console(width=_WIDTH)
    plans: dict[tuple[str, bool], Plan] = {}
    for bf16 in PRECISIONS:
        for one in modules:
            here = Setting(replace(setting.computation, bf16=bf16))
            with console.status(f"Planning {name_method(one)}, {precision(bf16)}"):
                plan = plan_run(one, here, lengths, judge, trains)
            plans[plan.method, bf16] = plan
    current = [plans[name_method(one), setting.computation.bf16].at(setting) for one in modules]
    grid = [
        [plans[name_method(one), other.computation.bf16].at(other) for one in modules]
        for other in other_settings(setting)
    ]
    mine = next(plan for plan in current if plan.method == own)
    blueprint = find_blueprint(module.backbone_name, module.kind)
    console.print(make_parts_table(current, own))
    console.print(give_advice(mine, blueprint.config.vocab_size), highlight=False)
    for table in (
        make_phases_table(current, own),
        make_settings_table(grid, own, mine),
        make_rule_table(min(plan.traced.total for plan in current)),  # adapters come on top
    ):
        console.print()
        console.print(table)


def plan_run(
    module: BaseModule, setting: Setting, lengths: Lengths, judge: str | None, trains: bool = True
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
    process = 0 if setting.computation.gpu else resident_bytes()
    return Plan(name_method(module), traced, setting, lengths, process)


def name_method(module: BaseModule) -> str:
    """Give the name of a module's method in the tables."""
    return METHODS.get(type(module), type(module).__name__)


def find_setting(trainer: Any) -> Setting:
    """Say where a run takes place.

    Args:
        trainer: Settings of the Trainer, as attributes.

    Raises:
        ValueError: If training refuses the strategy.
    """
    asked = str(trainer.accelerator).lower()
    gpu = torch.cuda.is_available() if asked == "auto" else asked not in ("cpu", "tpu")
    devices = _count_devices(trainer.devices, gpu) * int(trainer.num_nodes or 1)
    computation = Computation(bf16=str(trainer.precision) == "bf16-mixed", gpu=gpu)
    return Setting(computation, find_strategy(name_strategy(trainer), devices), devices)


def find_lengths(datamodule: Any) -> Lengths:
    """Say how large the batches of a datamodule can be, in what lengths are padded to."""
    batch_size = datamodule.batch_size
    source = getattr(datamodule, "max_source_length", None) or datamodule.max_length
    longest = getattr(datamodule, "max_dialogue_chars", None)
    if longest is not None and datamodule.shots == 0:
        source = min(source, longest // CHARS_PER_TOKEN + PROMPT_TOKENS)
    multiple = getattr(datamodule, "pad_to_multiple_of", MULTIPLE)
    source, target = (
        -(-length // multiple) * multiple
        for length in (source, getattr(datamodule, "max_target_length", 0))
    )
    return Lengths(batch_size, getattr(datamodule, "eval_batch_size", batch_size), source, target)


def find_compared(module: BaseModule, judge: str | None) -> list[BaseModule]:
    """List the run's own module and, with their defaults on its backbone, the others.

    The backbone of a reward model or classifier is one that none of the others can use.
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
        settings["gradient_checkpointing"] = module.gradient_checkpointing
    return kind(**settings)


def other_settings(setting: Setting) -> Iterator[Setting]:
    """Give every precision in every strategy, on as many devices as asked for, or else on 8."""
    devices = setting.devices if setting.devices > 1 else 8
    for bf16 in PRECISIONS:
        computation = replace(setting.computation, bf16=bf16)
        for strategy in LABELS:
            yield Setting(computation, strategy, 1 if strategy == "single" else devices)


def _count_devices(devices: Any, gpu: bool) -> int:
    if devices in ("auto", None):
        return max(1, torch.cuda.device_count()) if gpu else 1
    if isinstance(devices, list):
        return len(devices)
    text = str(devices)
    if "," in text:
        return len([part for part in text.split(",") if part.strip()])
    return max(1, torch.cuda.device_count()) if text == "-1" else int(text)
