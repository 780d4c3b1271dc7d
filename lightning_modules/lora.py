"""LoRA: low-rank updates to a frozen backbone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from lightning_modules.policies.adapters import (
    attach_adapter,
    find_adapter_problem,
    find_config_problem,
    load_adapter,
)
from lightning_modules.policies.lora import LoRASettings
from lightning_modules.summarization import SummarizationModule


class LoRA(SummarizationModule):
    """Low-rank adaptation (Hu et al. 2021): about 1.4 % of FLAN-T5-base at rank 32 on q and v.

    Args:
        r: Rank of the updates; null is 32, or that of the adapter to continue.
        alpha: Numerator of their scale alpha / r; null is 32, or that of the adapter.
        lora_dropout: Dropout on their input.
        target_modules: Adapted layers, as in PEFT: a list of name endings, a regular expression
            for full names, or ``all-linear``; null is the adapter's, or PEFT's default.
        use_dora: Train the norm of each row of the adapted matrices separately (Liu et al. 2024).
        use_rslora: Scale by alpha / sqrt(r) instead of alpha / r (Kalajdzievski 2023).
        adapter: Export folder of a LoRA to continue; None starts a new one.
        **kwargs: See :class:`SummarizationModule`.

    Raises:
        ValueError: If a setting is out of range, or the adapter does not fit.
    """

    def __init__(
        self,
        backbone: str,
        r: int | None = None,
        alpha: int | None = None,
        lora_dropout: float = 0.05,
        # The list comes first: jsonargparse uses the first type that fits, and str always fits.
        target_modules: Sequence[str] | str | None = None,
        use_dora: bool | None = None,
        use_rslora: bool | None = None,
        adapter: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, **kwargs)
        self.lora = LoRASettings(r, alpha, lora_dropout, target_modules, use_dora, use_rslora)
        self.adapter = None if adapter is None else str(Path(adapter).resolve())
        if adapter is not None and (
            problem := find_adapter_problem(adapter, backbone, "LORA", self.lora.shape())
        ):
            raise ValueError(problem)

    @classmethod
    def find_problems(cls, init_args: Any, trainer: Any) -> list[str | None]:
        """List configuration problems before anything is loaded; None is no problem."""
        problems = super().find_problems(init_args, trainer)
        if any(problems):
            return problems
        names = ("r", "alpha", "lora_dropout", "target_modules", "use_dora", "use_rslora")
        lora, backbone = LoRASettings(*(init_args[name] for name in names)), init_args.backbone
        if init_args.adapter is None:
            return [*problems, find_config_problem(lora.config(), backbone)]
        return [
            *problems, find_adapter_problem(init_args.adapter, backbone, "LORA", lora.shape())
        ]  # fmt: skip

    def attach(self, backbone: PreTrainedModel) -> nn.Module:
        """Freeze the backbone and add the updates."""
        if self.adapter is None:
            return attach_adapter(backbone, self.lora.config())
        dropout = self.lora.dropout
        return load_adapter(backbone, self.adapter, trainable=True, lora_dropout=dropout)
