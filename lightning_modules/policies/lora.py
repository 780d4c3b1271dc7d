"""Settings of a LoRA, new or continued."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from peft import LoraConfig

Targets = Sequence[str] | str | None
"""A list of name endings, a regular expression for full names, ``all-linear``, or the default."""


@dataclass(frozen=True)
class LoRASettings:
    """Settings of a LoRA; None is that of the adapter to continue, or the default of a new one.

    Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685,
    equation 3: h = W x + s B A x with s = alpha / r, and B = 0 at the start, so that a new LoRA
    changes nothing. rsLoRA (Kalajdzievski 2023, arXiv 2312.03732) uses s = alpha / sqrt(r). DoRA
    (Liu et al. 2024, arXiv 2402.09353, equation 5) replaces the matrix by
    m (W + s B A) / |W + s B A|, with a trained norm m for each output that starts as |W|.

    Args:
        r: Rank of the updates; 32 for a new LoRA.
        alpha: Numerator of their scale; 32 for a new LoRA.
        dropout: Dropout on their input.
        target_modules: The adapted layers, in PEFT's syntax: a list of name endings (for T5 ``q``,
            ``k``, ``v``, ``o``, ``wi_0``, ``wi_1``, ``wo``), a regular expression for full names,
            or ``all-linear``. The default is PEFT's for the architecture, for T5 q and v.
        use_dora: Train the norm of each row of the adapted matrix separately (DoRA).
        use_rslora: Scale by alpha / sqrt(r), which does not shrink the updates of high ranks.

    Raises:
        ValueError: If a number is out of range.
    """

    r: int | None = None
    alpha: int | None = None
    dropout: float = 0.0
    target_modules: Targets = None
    use_dora: bool | None = None
    use_rslora: bool | None = None

    def __post_init__(self) -> None:
        problems = [
            f"{name} must be at least 1, got {value}"
            for name, value in (("r", self.r), ("alpha", self.alpha))
            if value is not None and value < 1
        ]
        if not 0 <= self.dropout < 1:
            problems.append(f"lora_dropout must be in [0, 1), got {self.dropout}")
        if problems:
            raise ValueError("LoRA: " + "; ".join(problems))

    def config(self) -> LoraConfig:
        """Return PEFT's config of a new LoRA with these settings.

        Raises:
            ValueError: If PEFT does not accept them.
        """
        return LoraConfig(
            r=32 if self.r is None else self.r,
            lora_alpha=32 if self.alpha is None else self.alpha,
            lora_dropout=self.dropout,
            target_modules=self.target_modules,
            use_dora=bool(self.use_dora),
            use_rslora=bool(self.use_rslora),
        )

    def shape(self) -> dict[str, Any]:
        """Return the settings that a continued adapter fixes, by PEFT's names."""
        return {
            "r": self.r,
            "lora_alpha": self.alpha,
            "target_modules": self.target_modules,
            "use_dora": self.use_dora,
            "use_rslora": self.use_rslora,
        }
