"""SoftPrompt: trained vectors before the input of a frozen backbone."""

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from lightning_modules.adapters import attach_soft_prompt
from lightning_modules.summarization import SummarizationModule


class SoftPrompt(SummarizationModule):
    """Prompt tuning (Lester et al. 2021): 20 to 100 virtual tokens; wants a high learning rate.

    Args:
        virtual_tokens: Number of trained vectors before the prompt.
        init_text: Text whose embeddings are the start; None starts from random vocabulary rows.
        **kwargs: See :class:`SummarizationModule`.

    Raises:
        ValueError: If ``virtual_tokens`` is not positive.
    """

    def __init__(
        self, virtual_tokens: int = 100, init_text: str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if virtual_tokens < 1:
            raise ValueError(f"virtual_tokens must be at least 1, got {virtual_tokens}")
        self.virtual_tokens = virtual_tokens
        self.init_text = init_text

    def attach(self, backbone: PreTrainedModel) -> nn.Module:
        """Freeze the backbone and add the virtual tokens."""
        return attach_soft_prompt(backbone, self.virtual_tokens, self.init_text)
