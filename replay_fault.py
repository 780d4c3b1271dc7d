"""Meet a recorded fault again: the same weights, the same rows, the same random numbers.

``python replay.py RUN --fault step00000012``; the names are those of the files in ``RUN/faults/``.
"""

from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

# First: see train.py.
import lightning as L  # isort: skip
import torch
from rich.table import Table
from torch import Tensor

from callbacks.faults import FaultFolder
from datamodules.consensus import Ranking
from datamodules.rows import take_rows
from lightning_modules import PPOPolicy
from lightning_modules.base import BaseModule
from lightning_modules.ppo.reward_terms import Texts
from lightning_modules.ppo.rollout import Rollout
from lightning_modules.ppo.token_scores import Prompts
from lightning_modules.ppo.update import Experience, minibatch_loss
from lightning_modules.randomness import seed_at


class Replayed(NamedTuple):
    """What was found again.

    numbers: by what they are of, as recorded (None where it was not) and as they are now.
    gradients: names of weights whose gradient is not finite.
    """

    numbers: dict[str, tuple[float | None, float]]
    gradients: list[str]

    @property
    def is_fault(self) -> bool:
        """Whether anything is not finite now."""
        return bool(self.gradients) or not all(isfinite(now) for _, now in self.numbers.values())


def replay_fault(
    module: BaseModule, run_dir: str | Path, place: str, precision: str, rank: int = 0
) -> Replayed:
    """Meet a fault again, on the CPU.

    Args:
        module: Built with the settings of the run.
        run_dir: The run folder.
        place: The fault's name.
        precision: Of the run.
        rank: Whose rows to take.

    Raises:
        ValueError: If there is no such fault.
    """
    content, weights = FaultFolder(run_dir).read(place, rank)
    module.configure_model()
    module.on_load_checkpoint(dict(weights))
    module.load_state_dict(weights["state_dict"], strict=False)
    with L.Fabric(accelerator="cpu", precision=precision).autocast():  # type: ignore[arg-type]
        if "texts" in content:
            return score_again(module, content)
        if "experience" in content:
            return update_again(module, content)
        return step_again(module, content)


def step_again(module: BaseModule, content: Mapping[str, Any]) -> Replayed:
    """Make the passes of an optimizer step again, all together and then each row by itself."""
    seed_at(*content["random"])
    for batch in content["batches"]:
        if "rankings" in batch:
            batch["rankings"] = [Ranking(**ranking) for ranking in batch["rankings"]]
    numbers: dict[str, tuple[float | None, float]] = {}
    for number, (batch, before) in enumerate(
        zip(content["batches"], content["losses"], strict=True)
    ):
        loss, _ = module.sum_losses(batch)
        loss.backward()
        numbers[f"loss of micro-batch {number}"] = (before, float(loss))
    bad = bad_gradients(module)
    with torch.no_grad():
        for batch in content["batches"]:
            for row, name in enumerate(batch["ids"]):
                loss, _ = module.sum_losses(take_rows(batch, row, row + 1))
                numbers[f"loss of row {name}, alone"] = (None, float(loss))
    return Replayed(numbers, bad)


def update_again(module: BaseModule, content: Mapping[str, Any]) -> Replayed:
    """Make the passes of a PPO minibatch again."""
    assert isinstance(module, PPOPolicy)  # noqa: S101 - a fault with an experience is of no other
    parts = dict(content["experience"])
    rollout = parts["rollout"] | {"prompts": Prompts(**parts["rollout"]["prompts"])}
    experience = Experience(**(parts | {"rollout": Rollout(**rollout)}))
    loss, sums, _ = minibatch_loss(module.model, module.value_head, experience, module.ppo)
    loss.backward()
    named = {"loss": loss, **{f"sum of {name}": value for name, value in sums._asdict().items()}}
    return Replayed(
        {name: (None, float(each)) for name, each in named.items()}, bad_gradients(module)
    )


def score_again(module: BaseModule, content: Mapping[str, Any]) -> Replayed:
    """Ask PPO's reward terms again."""
    assert isinstance(module, PPOPolicy)  # noqa: S101 - a fault with texts is of no other
    texts = Texts(**content["texts"])
    numbers: dict[str, tuple[float | None, float]] = {}
    for name, term in module.terms.items():
        now: Tensor = term.score(texts, torch.device("cpu"))
        for row, values in enumerate(zip(content["terms"][name], now.tolist(), strict=True)):
            numbers[f"{name} of summary {row}"] = values
    return Replayed(numbers, [])


def bad_gradients(module: BaseModule) -> list[str]:
    """Name the weights whose gradient is not finite."""
    return [
        name
        for name, weight in module.named_parameters()
        if weight.grad is not None and not weight.grad.isfinite().all()
    ]


def make_fault_table(found: Replayed, title: str) -> Table:
    """Lay out what was found."""
    table = Table(title=title, title_justify="left")
    for name in ("what", "recorded", "replayed"):
        table.add_column(name, justify="left" if name == "what" else "right")
    for name, (before, now) in found.numbers.items():
        table.add_row(name, "" if before is None else f"{before:.9g}", f"{now:.9g}")
    shown = ", ".join(found.gradients[:5]) or "none"
    more = f" and {len(found.gradients) - 5} more" if len(found.gradients) > 5 else ""
    table.add_row("gradients that are not finite", "", shown + more)
    return table
