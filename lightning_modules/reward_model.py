"""RewardModel: a classifier with one output, trained on rankings."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from common.hub import reading, resolve_model
from datamodules.preferences import Format, PreferenceBatch
from lightning_modules.backbones import set_dropout
from lightning_modules.base import BaseModule
from lightning_modules.preference_losses import pairwise_loss
from lightning_modules.reward_normalization import Normalization, normalize_rewards
from lightning_modules.reward_scorer import FORMAT


class RewardModel(BaseModule):
    """A classifier with one output, trained so that preferred completions score higher.

    The pairwise loss of Bradley and Terry, -log sigmoid(r_j - r_k) for y_j preferred to y_k
    (Ouyang et al. 2022, "Training language models to follow instructions with human feedback",
    equation 1). All pairs of a ranking come from one forward pass over its completions, and their
    weights sum to 1, so that long rankings do not dominate.

    Completions are scored alone or with their dialogue, as the data module provides them. The
    export records which, so that PPO does the same. If the data module has reference summaries,
    their mean reward in exports and tests is 0.

    Args:
        backbone: A classifier or an encoder such as roberta-base: hub id, folder, or ``mini``.
        margin: Difference of rewards to aim at, per rank between two completions: the loss is
            -log sigmoid(r_j - r_k - margin * distance).
        **kwargs: See :class:`BaseModule`.

    Raises:
        ValueError: If a setting is out of range.
    """

    kind = "classifier"

    def __init__(self, backbone: str, margin: float = 0.0, **kwargs: Any) -> None:
        super().__init__(backbone, **kwargs)
        if margin < 0:
            raise ValueError(f"margin must be 0 or more, got {margin}")
        self.margin = margin

    def attach(self, backbone: PreTrainedModel) -> nn.Module:
        """Train all of the encoder and its head."""
        return backbone.requires_grad_(True)

    def load_backbone(self) -> PreTrainedModel:
        """Load the encoder in fp32, with a head of one output."""
        return load_encoder(self.backbone_name, self.dropout, num_labels=1)

    def rewards(self, batch: PreferenceBatch) -> Tensor:
        """Score all completions of a batch of rankings: fp32 [N]."""
        return self.model(**batch["inputs"]).logits.float().squeeze(-1)

    def loss(self, rewards: Tensor, batch: PreferenceBatch) -> Tensor:
        """Sum the pairwise losses of a batch, with weight 1 for each ranking: a scalar."""
        return pairwise_loss(
            rewards, batch["pairs"], batch["weights"], batch["distances"], self.margin
        )

    def sum_losses(self, batch: PreferenceBatch) -> tuple[Tensor, Tensor]:
        """Sum the pairwise losses, with weight 1 for each ranking; count the rankings."""
        loss = self.loss(self.rewards(batch), batch)
        return loss, loss.new_tensor(len(batch["ids"]))

    def on_test_start(self) -> None:
        """Shift the rewards of a checkpoint as an export shifts them."""
        super().on_test_start()
        self.normalize()

    def validation_step(self, batch: PreferenceBatch, batch_idx: int) -> dict[str, Any]:
        """Measure loss and rewards; see :meth:`evaluation_step`."""
        return self.evaluation_step(batch, "val")

    def test_step(self, batch: PreferenceBatch, batch_idx: int) -> dict[str, Any]:
        """Measure loss and rewards; see :meth:`evaluation_step`."""
        return self.evaluation_step(batch, "test")

    def evaluation_step(self, batch: PreferenceBatch, stage: str) -> dict[str, Any]:
        """Log ``<stage>/loss``; return ``loss`` and ``rewards`` (one list per ranking)."""
        rewards, count = self.rewards(batch), len(batch["ids"])
        loss = self.loss(rewards, batch) / count
        self.log_mean(f"{stage}/loss", loss, count)
        sizes = [len(ranking.completions) for ranking in batch["rankings"]]
        return {"loss": loss, "rewards": [part.tolist() for part in rewards.split(sizes)]}

    # What a run leaves --------------------------------------------------------------------------

    def normalize(self) -> Normalization | None:
        """Shift the rewards so that the data module's references, if any, have a mean of 0."""
        data = getattr(self.attached_trainer, "datamodule", None)
        batches = getattr(data, "reference_batches", None)
        if batches is None:
            return None
        return normalize_rewards(self.model, batches(), self.gathered)

    def export(self, path: str | Path) -> dict[str, Any]:
        """Write the shifted model; its config records the expected input and the scale.

        Returns:
            That record under "reward", for the run's summary.
        """
        found, about = self.normalize(), {}
        data = getattr(self.attached_trainer, "datamodule", None)
        if (asked := getattr(data, "format", None)) is not None:
            about = Format(*asked)._asdict()
            self.tokenizer.model_max_length = about["max_length"]
        if found is not None:
            about |= found._asdict()
        setattr(self.model.config, FORMAT, about)
        super().export(path)
        return {"reward": about}


def load_encoder(name: str, dropout: float | None, **config: Any) -> PreTrainedModel:
    """Load an encoder in fp32 with a classification head, a new one if none of its shape exists.

    Args:
        name: A classifier or an encoder: hub id, folder, or ``mini``.
        dropout: Dropout rate; None keeps the model's own.
        **config: Values to set in its config, such as ``num_labels``.
    """
    path = resolve_model(name, "classifier")
    settings = AutoConfig.from_pretrained(path, trust_remote_code=False)
    for setting, value in config.items():
        setattr(settings, setting, value)
    with reading(path):
        model = AutoModelForSequenceClassification.from_pretrained(
            path,
            config=settings,
            dtype=torch.float32,
            trust_remote_code=False,
            # The head of a classifier with other labels is replaced by a new one.
            ignore_mismatched_sizes=True,
        )
    if dropout is not None:
        set_dropout(model, dropout)
    return model
