"""Classifier: labels of texts; the logit of one of them can be a reward for PPO."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from datamodules.labelled import LabelledBatch
from lightning_modules.base import BaseModule
from lightning_modules.reward_model import load_encoder


class Classifier(BaseModule):
    """An encoder with one output per label, trained by cross-entropy on labelled texts.

    Its export names the labels, by which ``PPOPolicy`` finds the reward and ``ToxicityCallback``
    the toxicity.

    Args:
        backbone: A classifier or an encoder such as roberta-base: hub id, folder, or ``mini``. A
            head with the same number of labels is kept.
        labels: Names of the labels, in the order of the outputs.
        label_smoothing: Part of each target that is spread over all labels. It limits the logits,
            and so the reward, on easy texts.
        **kwargs: See :class:`BaseModule`.

    Raises:
        ValueError: If a setting is out of range.
    """

    kind = "classifier"

    def __init__(
        self,
        backbone: str,
        labels: Sequence[str] = ("nothate", "hate"),
        label_smoothing: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, **kwargs)
        if len(labels) < 2 or len({label.lower() for label in labels}) < len(labels):
            raise ValueError(
                f"labels must be at least two, different apart from case, got {list(labels)}"
            )
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
        self.labels = list(labels)
        self.label_smoothing = label_smoothing

    def attach(self, backbone: PreTrainedModel) -> nn.Module:
        """Train all of the encoder and its head."""
        return backbone.requires_grad_(True)

    def load_backbone(self) -> PreTrainedModel:
        """Load the encoder in fp32, with a head of as many outputs as there are labels."""
        names = dict(enumerate(self.labels))
        numbers = {label: number for number, label in names.items()}
        return load_encoder(self.backbone_name, self.dropout, id2label=names, label2id=numbers)

    def logits(self, batch: LabelledBatch) -> Tensor:
        """Score B texts with every label: fp32 [B, labels]."""
        return self.model(**batch["inputs"]).logits.float()

    def sum_losses(self, batch: LabelledBatch) -> tuple[Tensor, Tensor]:
        """Sum the cross-entropy of the texts; count them."""
        loss = self.loss(self.logits(batch), batch)
        return loss, loss.new_tensor(len(batch["ids"]))

    def loss(self, logits: Tensor, batch: LabelledBatch) -> Tensor:
        """Sum the cross-entropy of B texts, nats: a scalar."""
        return F.cross_entropy(
            logits, batch["labels"], reduction="sum", label_smoothing=self.label_smoothing
        )

    def validation_step(self, batch: LabelledBatch, batch_idx: int) -> dict[str, Any]:
        """Measure loss and probabilities; see :meth:`evaluation_step`."""
        return self.evaluation_step(batch, "val")

    def test_step(self, batch: LabelledBatch, batch_idx: int) -> dict[str, Any]:
        """Measure loss and probabilities; see :meth:`evaluation_step`."""
        return self.evaluation_step(batch, "test")

    def evaluation_step(self, batch: LabelledBatch, stage: str) -> dict[str, Any]:
        """Log ``<stage>/loss``; return ``loss`` and ``probabilities`` (one list per text)."""
        logits, count = self.logits(batch), len(batch["ids"])
        loss = self.loss(logits, batch) / count
        self.log_mean(f"{stage}/loss", loss, count)
        return {"loss": loss, "probabilities": logits.softmax(dim=-1).tolist()}
