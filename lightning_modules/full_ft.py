"""FullFT: every weight of the backbone is trained."""

from torch import nn
from transformers import PreTrainedModel

from lightning_modules.backbones import train_all
from lightning_modules.summarization import SummarizationModule


class FullFT(SummarizationModule):
    """Full fine-tuning, the most expensive method; see :class:`SummarizationModule`.

    Weights, gradients and the two moments of Adam take 16 bytes of memory per parameter, to which
    activations are added.
    """

    def attach(self, backbone: PreTrainedModel) -> nn.Module:
        """Train all of the backbone."""
        train_all(backbone)
        return backbone
