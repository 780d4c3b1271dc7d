"""FullFT: every weight of the backbone is trained."""

from torch import nn
from transformers import PreTrainedModel

from lightning_modules.summarization import SummarizationModule


class FullFT(SummarizationModule):
    """Full fine-tuning: the strongest and the most expensive way; see :class:`SummarizationModule`.

    Adam keeps two numbers for each weight, so it takes 16 bytes of memory a parameter before any
    activation.
    """

    def attach(self, backbone: PreTrainedModel) -> nn.Module:
        """Train all of the backbone."""
        return backbone.requires_grad_(True)
