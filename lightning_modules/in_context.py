"""InContext: the unchanged backbone, prompted with or without examples."""

from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn
from transformers import PreTrainedModel

from lightning_modules.summarization import Decoding, SummarizationModule


class InContext(SummarizationModule):
    """Zero-, one- and few-shot prompting: nothing is trained.

    The data module sets the number of examples (``--data.shots``), which need space in the context.
    ``fit`` only writes the run folder (``max_epochs: 0`` in the config); ``test`` evaluates.

    Args:
        backbone: Hub id, a folder written by ``save_pretrained``, or ``mini``.
        decoding: How summaries are generated.
        acceleration: See :class:`BaseModule`.
    """

    needs_training = False

    def __init__(
        self, backbone: str, decoding: Decoding | None = None, acceleration: bool = True
    ) -> None:
        super().__init__(backbone, decoding=decoding, acceleration=acceleration)

    def attach(self, backbone: PreTrainedModel) -> nn.Module:
        """Freeze all of the backbone."""
        return backbone.requires_grad_(False)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return no optimizer."""
        return None
