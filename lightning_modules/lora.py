"""LoRA: low-rank updates to a frozen backbone."""

from collections.abc import Sequence
from typing import Any

from peft import PeftConfig
from torch import nn
from transformers import PreTrainedModel

from lightning_modules.adapter import Adapter
from lightning_modules.policies.adapters import load_adapter
from lightning_modules.policies.lora import LoRASettings


class LoRA(Adapter):
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
        self.lora = LoRASettings(r, alpha, lora_dropout, target_modules, use_dora, use_rslora)
        super().__init__(backbone, self.lora.config(), adapter, **kwargs)

    def fixed(self) -> dict[str, Any]:
        """Return the settings that are not null."""
        return self.lora.shape()

    @classmethod
    def read_settings(cls, init_args: Any) -> tuple[PeftConfig, dict[str, Any]]:
        """Return PEFT's config of a new LoRA, and the settings that a continued one must have."""
        names = ("r", "alpha", "lora_dropout", "target_modules", "use_dora", "use_rslora")
        lora = LoRASettings(*(init_args[name] for name in names))
        return lora.config(), lora.shape()

    def attach(self, backbone: PreTrainedModel) -> nn.Module:
        """Freeze the backbone and add the updates."""
        if self.adapter is None:
            return super().attach(backbone)
        dropout = self.lora.dropout
        return load_adapter(backbone, self.adapter, trainable=True, lora_dropout=dropout)
