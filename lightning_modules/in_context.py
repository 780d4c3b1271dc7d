"""InContext: the backbone as it is; the prompt, with or without examples, does the work."""

from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn
from transformers import PreTrainedModel

from lightning_modules.summarization import Decoding, SummarizationModule


class InContext(SummarizationModule):
    """Zero-, one- and few-shot prompting: nothing is trained.

    How many examples stand before the question is the data's business (``--data.shots``), since
    they take room in the context. ``fit`` has nothing to do with this module (``max_epochs: 0`` in
    its config) and only writes the run folder; ``test`` scores it.

    Args:
        backbone: Hub id, a folder written by ``save_pretrained``, or ``mini``.
        decoding: How summaries are generated.
    """

    needs_training = False

    def __init__(self, backbone: str, decoding: Decoding | None = None) -> None:
        super().__init__(backbone, decoding=decoding)

    def attach(self, backbone: PreTrainedModel) -> nn.Module:
        """Freeze all of the backbone."""
        return backbone.requires_grad_(False)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Have no optimizer."""
        return None
