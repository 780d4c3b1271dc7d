"""Adapter: an adapter of any PEFT kind on a frozen backbone."""

from pathlib import Path
from typing import Any

import torch
from peft import AdaLoraModel, PeftConfig
from torch import Tensor, nn
from transformers import PreTrainedModel

from common.imports import instantiate
from datamodules.batching import Batch
from lightning_modules.policies.adapters import (
    attach_adapter,
    find_adapter_problem,
    find_config_problem,
    load_adapter,
)
from lightning_modules.summarization import SummarizationModule


class Adapter(SummarizationModule):
    """An adapter of any PEFT kind, such as IA3, VeRA, PiSSA, AdaLoRA or P-tuning.

    Its layers are PEFT's default for the architecture unless ``config`` names others. AdaLoRA
    (Zhang et al. 2023, arXiv 2303.10512) moves ranks between layers after each step and adds a
    penalty on the orthogonality of its matrices; both are done here as in PEFT.

    Args:
        config: Kind and settings, such as ``class_path: peft.IA3Config``.
        adapter: Export folder of an adapter of that kind to continue, with its settings; None
            starts a new one.
        **kwargs: See :class:`SummarizationModule`.

    Raises:
        ValueError: If the adapter does not fit.
    """

    def __init__(
        self, backbone: str, config: PeftConfig, adapter: str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(backbone, **kwargs)
        self.config = config
        self.adapter = None if adapter is None else str(Path(adapter).resolve())
        if problem := self.find_start_problem(config, self.fixed(), adapter, backbone):
            raise ValueError(problem)

    def fixed(self) -> dict[str, Any]:
        """Return the settings that an adapter to continue must have, by PEFT's names."""
        return {}

    @staticmethod
    def find_start_problem(
        config: PeftConfig, fixed: dict[str, Any], adapter: str | None, backbone: str
    ) -> str | None:
        """Explain why an adapter cannot be continued, or return None."""
        if adapter is None:
            return None
        return find_adapter_problem(adapter, backbone, str(config.peft_type.value), fixed)

    @classmethod
    def read_settings(cls, init_args: Any) -> tuple[PeftConfig, dict[str, Any]]:
        """Return the config and what :meth:`fixed` will return, from parsed settings."""
        return instantiate(init_args.config), {}

    @classmethod
    def find_problems(cls, init_args: Any, trainer: Any) -> list[str | None]:
        """List configuration problems before anything is loaded; None is no problem."""
        problems = super().find_problems(init_args, trainer)
        if any(problems):
            return problems
        config, fixed = cls.read_settings(init_args)
        backbone, adapter = init_args.backbone, init_args.adapter
        if adapter is None:
            return [*problems, find_config_problem(config, backbone)]
        return [*problems, cls.find_start_problem(config, fixed, adapter, backbone)]

    def attach(self, backbone: PreTrainedModel) -> nn.Module:
        """Freeze the backbone and attach the adapter."""
        if self.adapter is None:
            return attach_adapter(backbone, self.config)
        return load_adapter(backbone, self.adapter, trainable=True)

    def sum_losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Sum the cross-entropy of a batch, with AdaLoRA's penalty for each token."""
        loss, tokens = super().sum_losses(batch)
        if isinstance(self.model.base_model, AdaLoraModel):
            loss = loss + tokens * self.orthogonality()
        return loss, tokens

    def orthogonality(self) -> Tensor:
        """Return AdaLoRA's penalty: the mean of |P P' - 1| over its matrices, times its weight.

        Zhang et al. 2023, equation 4, without the square, as PEFT computes it.
        """
        gaps = []
        for name, weight in self.model.named_parameters():
            if weight.requires_grad and ("lora_A" in name or "lora_B" in name):
                gram = weight @ weight.T if "lora_A" in name else weight.T @ weight
                gaps.append(torch.linalg.norm(gram - torch.eye(len(gram), device=gram.device)))
        return self.config.orth_reg_weight * torch.stack(gaps).mean()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Let AdaLoRA move ranks after each optimizer step; its gradients are still there."""
        steps, micro = self.global_step, self.trainer.accumulate_grad_batches
        if isinstance(self.model.base_model, AdaLoraModel) and (batch_idx + 1) % micro == 0:
            self.model.base_model.update_and_allocate(steps)
