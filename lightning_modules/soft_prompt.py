"""SoftPrompt: trained vectors in front of the input of a frozen backbone."""

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from lightning_modules.policies.soft_prompt import SoftPromptSettings, Start, attach_soft_prompt
from lightning_modules.summarization import SummarizationModule


class SoftPrompt(SummarizationModule):
    """Prompt tuning (Lester et al. 2021): 20 to 100 virtual tokens and a high learning rate.

    Args:
        virtual_tokens: Number of trained vectors in front of the prompt.
        init: Initial values: ``random`` (uniform in [-0.5, 0.5]), ``vocabulary`` (embeddings of
            common tokens) or ``text`` (embeddings of ``init_text``).
        init_text: The initial text, repeated or truncated to the number of vectors.
        **kwargs: See :class:`SummarizationModule`.

    Raises:
        ValueError: If ``virtual_tokens`` is not positive, or ``init`` and ``init_text`` disagree.
    """

    def __init__(
        self,
        backbone: str,
        virtual_tokens: int = 100,
        init: Start = "vocabulary",
        init_text: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, **kwargs)
        self.prompt = SoftPromptSettings(virtual_tokens, init, init_text)

    def attach(self, backbone: PreTrainedModel) -> nn.Module:
        """Freeze the backbone and add the virtual tokens."""
        return attach_soft_prompt(backbone, self.prompt)
