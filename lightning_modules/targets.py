"""Which layers a LoRA adapts: the layers that a PEFT target names, checked before PEFT sees it."""

import re
from collections import Counter
from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

ALL_LINEAR = "all-linear"
"""PEFT's word for every linear layer but the output head."""

_ADAPTABLE = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d, Conv1D)

Targets = Sequence[str] | str
"""A list of ends of layer names, a regular expression over whole names, or ``all-linear``."""


def find_pattern_problem(targets: Targets) -> str | None:
    """Say what is wrong with targets whatever the model, or return None where nothing is."""
    if not targets or not all(targets):
        return "target_modules is empty; name the layers to adapt, for T5 for example [q, v]"
    if isinstance(targets, str) and targets.lower() != ALL_LINEAR:
        try:
            re.compile(targets)
        except re.error as error:
            return f"target_modules: {targets!r} is no regular expression ({error})"
    return None


def match_targets(model: PreTrainedModel, targets: Targets) -> dict[str, nn.Module]:
    """Find the modules that PEFT would wrap, by name.

    As PEFT does: a list holds whole names or ends of names (``v`` fits ``...SelfAttention.v``), a
    string is a regular expression that the whole name has to fit, and ``all-linear`` is every
    linear layer but the output head.
    """
    modules = dict(model.named_modules())
    if not isinstance(targets, str):
        return {name: modules[name] for name in modules if _fits(name, targets)}
    if targets.lower() != ALL_LINEAR:
        return {name: modules[name] for name in modules if re.fullmatch(targets, name)}
    head = model.get_output_embeddings()
    linear = (nn.Linear, Conv1D)
    return {n: m for n, m in modules.items() if isinstance(m, linear) and m is not head}


def find_target_problem(model: PreTrainedModel, targets: Targets) -> str | None:
    """Say why a LoRA cannot adapt these layers of a model, or return None where it can.

    PEFT itself is content when one name of a list fits, and passes over the others.

    Args:
        model: A backbone; on the meta device will do.
        targets: See :data:`Targets`.
    """
    if problem := find_pattern_problem(targets):
        return problem
    matched = match_targets(model, targets)
    wanted = [targets] if isinstance(targets, str) else list(targets)
    missing = wanted if not matched else []
    if not isinstance(targets, str):
        missing = [target for target in targets if not any(_fits(n, [target]) for n in matched)]
    if missing:
        return f"target_modules: no layer is named {missing}; {_describe(model)}"
    for name, module in matched.items():
        if not isinstance(module, _ADAPTABLE):
            return (
                f"target_modules: {targets!r} fits {name!r}, a {type(module).__name__}, which LoRA "
                f"cannot adapt; {_describe(model)}, and a regular expression has to fit whole names"
                r", as .*decoder.*\.(q|v) does"
            )
    return None


def find_shared_problem(model: PreTrainedModel, targets: Targets) -> str | None:
    """Say which targeted layer shares its matrix with another, or return None where none does.

    T5's encoder and decoder look their tokens up in one matrix, and T5 v1.0 has it for a head too.
    An update of one of its users is not one of the others, and cannot be merged into it.
    """
    users = Counter(id(m.weight) for m in model.modules() if isinstance(m, _ADAPTABLE))
    for name, module in match_targets(model, targets).items():
        if users[id(module.weight)] > 1:
            return (
                f"target_modules: {name!r} shares its matrix with other layers, so a LoRA of it "
                "alone could not be merged; leave it out"
            )
    return None


def _fits(name: str, ends: Sequence[str]) -> bool:
    return any(name == end or name.endswith(f".{end}") for end in ends)


def _describe(model: PreTrainedModel) -> str:
    ends = {n.rsplit(".", 1)[-1] for n, m in model.named_modules() if isinstance(m, _ADAPTABLE)}
    return f"the layers' names end in {', '.join(sorted(ends))}"
