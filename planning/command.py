"""What the command line does with plans: print them, or hand one to a run."""

import logging
from dataclasses import replace
from typing import Any

import rich
from rich.console import Console

from lightning_modules.base import BaseModule
from planning.memory import Plan, Setting
from planning.run import (
    find_compared,
    find_lengths,
    find_setting,
    name_method,
    other_settings,
    plan_run,
)
from planning.shapes import find_blueprint
from planning.tables import (
    give_advice,
    make_parts_table,
    make_phases_table,
    make_rule_table,
    make_settings_table,
    precision,
)

logger = logging.getLogger(__name__)

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
    except (ValueError, AttributeError, RuntimeError) as error:
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
    for bf16 in (False, True):
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
        console.print(table)
