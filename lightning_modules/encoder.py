"""EncoderModule: an encoder with a classification head, for reward models and classifiers."""

from typing import Any, Literal

from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from common.hub import resolve_model
from lightning_modules.backbones import load_weights, set_dropout
from lightning_modules.base import BaseModule


class EncoderModule(BaseModule):
    """An encoder and its head, all of it trained; subclasses define the head and the loss.

    Args:
        backbone: A classifier or an encoder such as roberta-base: hub id, folder, or ``mini``.
        **kwargs: See :class:`BaseModule`.
    """

    kind = "classifier"

    def head_config(self) -> dict[str, Any]:
        """Return the entries of the model's config that define its head."""
        raise NotImplementedError

    def loss(self, scores: Tensor, batch: Any) -> Tensor:
        """Sum the losses of a batch, given the output of :meth:`scores`: a scalar."""
        raise NotImplementedError

    def outputs(self, scores: Tensor, batch: Any) -> dict[str, Any]:
        """Return what callbacks need from an evaluation step."""
        raise NotImplementedError

    def scores(self, batch: Any) -> Tensor:
        """Run the model on a batch of N texts: fp32 [N, outputs]."""
        scores: Tensor = self.model(**batch["inputs"]).logits.float()
        return scores

    def attach(self, backbone: PreTrainedModel) -> nn.Module:
        """Train the whole encoder and its head."""
        return backbone.requires_grad_(True)

    def load_backbone(self) -> PreTrainedModel:
        """Load the encoder in fp32; its head is new unless it has the same shape."""
        path = resolve_model(self.backbone_name, "classifier")
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        if config.get_text_config().pad_token_id is None:
            # A decoder reads its last token before the padding.
            config.get_text_config().pad_token_id = self.tokenizer.pad_token_id
        for name, value in self.head_config().items():
            setattr(config, name, value)
        model = load_weights(AutoModelForSequenceClassification, path, new_head=True, config=config)
        if self.dropout is not None:
            set_dropout(model, self.dropout)
        return model

    def sum_losses(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Sum the losses of a batch, and count its rows."""
        loss = self.loss(self.scores(batch), batch)
        return loss, loss.new_tensor(len(batch["ids"]))

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Log ``val/loss``; return it with :meth:`outputs`."""
        return self._evaluate(batch, "val")

    def test_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Log ``test/loss``; return it with :meth:`outputs`."""
        return self._evaluate(batch, "test")

    def _evaluate(self, batch: Any, stage: Literal["val", "test"]) -> dict[str, Any]:
        scores, count = self.scores(batch), len(batch["ids"])
        loss = self.loss(scores, batch) / count
        self.log_mean(f"{stage}/loss", loss, count)
        return {"loss": loss, **self.outputs(scores, batch)}
