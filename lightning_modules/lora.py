"""LoRA: low-rank updates to a frozen backbone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from lightning_modules.backbones import sketch_backbone
from lightning_modules.policies.adapters import find_adapter_problem
from lightning_modules.policies.lora import (
    LoRASettings,
    attach_lora,
    continue_lora,
    find_shape_problem,
    find_target_problem,
)
from lightning_modules.summarization import SummarizationModule


class LoRA(SummarizationModule):
    """Low-rank adaptation (Hu et al. 2021): about 1.4 % of FLAN-T5-base at rank 32 on q and v.

    Args:
        r: Rank of the updates.
        alpha: Numerator of their scale alpha / r.
        lora_dropout: Dropout on their input.
        target_modules: Adapted layers, as in PEFT: a list of name suffixes, a regular expression
            for full names, or ``all-linear``.
        use_dora: Train the norm of each row of the adapted matrices separately (Liu et al. 2024).
        use_rslora: Scale by alpha / sqrt(r) instead of alpha / r (Kalajdzievski 2023).
        adapter: Export folder of a LoRA of the same shape to continue; None starts a new one.
        **kwargs: See :class:`SummarizationModule`.

    Raises:
        ValueError: If a setting is out of range, or the adapter does not fit the backbone.
    """

    def __init__(
        self,
        backbone: str,
        r: int = 32,
        alpha: int = 32,
        lora_dropout: float = 0.05,
        # The list comes first: jsonargparse uses the first type that fits, and str always fits.
        target_modules: Sequence[str] | str = ("q", "v"),
        use_dora: bool = False,
        use_rslora: bool = False,
        adapter: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, **kwargs)
        self.lora = LoRASettings(r, alpha, lora_dropout, target_modules, use_dora, use_rslora)
        if adapter is not None and (problem := find_adapter_problem(adapter, backbone)):
            raise ValueError(problem)
        self.adapter = None if adapter is None else str(Path(adapter).resolve())

    @classmethod
    def find_problems(cls, init_args: Any, trainer: Any) -> list[str | None]:
        """List configuration problems before anything is loaded; None is no problem."""
        problems = super().find_problems(init_args, trainer)
        if any(problems):
            return problems
        sketch = sketch_backbone(init_args.backbone)
        problems.append(find_target_problem(sketch, init_args.target_modules))
        if init_args.adapter is not None:
            names = ("r", "alpha", "lora_dropout", "target_modules", "use_dora", "use_rslora")
            settings = LoRASettings(*(init_args[name] for name in names))
            problems.append(
                find_adapter_problem(init_args.adapter, init_args.backbone)
                or find_shape_problem(sketch, init_args.adapter, settings)
            )
        return problems

    def attach(self, backbone: PreTrainedModel) -> nn.Module:
        """Freeze the backbone and add the updates."""
        if self.adapter is None:
            return attach_lora(backbone, self.lora)
        return continue_lora(backbone, self.adapter, self.lora)
