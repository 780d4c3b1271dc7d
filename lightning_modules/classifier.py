"""Classifier: labels of texts; the logit of one of them can be a reward for PPO."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from datamodules.labelled import LabelledBatch
from lightning_modules.encoder import EncoderModule


class Classifier(EncoderModule):
    """An encoder with one output per label, trained by cross-entropy on labeled texts.

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

    def head_config(self) -> dict[str, Any]:
        """Return the names of the labels, one output each."""
        names = dict(enumerate(self.labels))
        return {"id2label": names, "label2id": {label: i for i, label in names.items()}}

    def loss(self, scores: Tensor, batch: LabelledBatch) -> Tensor:
        """Sum the cross-entropy of N texts in nats, given logits [N, labels]: a scalar."""
        return F.cross_entropy(
            scores, batch["labels"], reduction="sum", label_smoothing=self.label_smoothing
        )

    def outputs(self, scores: Tensor, batch: LabelledBatch) -> dict[str, Any]:
        """Return "probabilities": for each text, one per label."""
        return {"probabilities": scores.softmax(dim=-1).tolist()}
