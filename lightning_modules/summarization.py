"""SummarizationModule: teacher forcing, generation and evaluation, shared by all methods."""

from typing import Any, ClassVar, Literal

from torch import Tensor

from datamodules.batching import Batch
from lightning_modules.backbones import Decoding
from lightning_modules.base import BaseModule


class SummarizationModule(BaseModule):
    """An encoder-decoder that summarizes dialogues; subclasses say what of it is trained.

    Args:
        backbone: Hub id, a folder written by ``save_pretrained``, or ``mini``.
        decoding: How summaries are generated in validation, test and predict.
        **kwargs: See :class:`BaseModule`.

    Raises:
        ValueError: If a setting is out of range.
    """

    generates: ClassVar[bool] = True

    def __init__(self, backbone: str, decoding: Decoding | None = None, **kwargs: Any) -> None:
        super().__init__(backbone, **kwargs)
        self.decoding = decoding or Decoding()

    def sum_losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Sum the cross-entropy over the tokens of the references, and count them."""
        return self.backbone.token_loss(batch)

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Measure the loss and generate the summaries that callbacks score."""
        return evaluate(self, batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Measure the loss and generate the summaries that callbacks score."""
        return evaluate(self, batch, "test")

    def predict_step(self, batch: Batch, batch_idx: int) -> list[str]:
        """Generate a summary for each dialogue."""
        return self.generate(batch)

    def generate(self, batch: Batch) -> list[str]:
        """Generate one summary for each row of a batch, with the settings of ``decoding``."""
        return self.backbone.generate(batch, self.decoding)


def evaluate(module: Any, batch: Batch, stage: Literal["val", "test"]) -> dict[str, Any]:
    """Return ``{"loss": scalar, "predictions": one text per row}`` and log ``<stage>/loss``.

    The loss is the mean over the references' tokens, over all batches and ranks.

    Args:
        module: A module with a backbone and settings of decoding.
        batch: Dialogues with references.
        stage: Prefix of the metric's name.
    """
    loss_sum, tokens = module.backbone.token_loss(batch)
    loss = loss_sum / tokens
    module.log_mean(f"{stage}/loss", loss, int(tokens))
    return {"loss": loss, "predictions": module.generate(batch)}
