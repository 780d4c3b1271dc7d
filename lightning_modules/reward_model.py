"""Reward models: one that is trained on rankings, and the frozen scorer that PPO asks."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
)

from datamodules.preferences import PreferenceBatch
from hub import resolve_model
from lightning_modules.backbones import set_dropout
from lightning_modules.base import BaseModule
from lightning_modules.kernels import quicken


class RewardScorer(nn.Module):
    """A frozen sequence classifier whose raw logit of one label is a text's reward.

    The raw logit, not its softmax: near certainty the probability is flat and leaves nothing to
    learn from, while the logit still tells good from better. A model with a single output gives
    that output.

    Args:
        name: Hub id, folder written by ``save_pretrained``, or ``mini``.
        label: The label whose logit is the reward, by its name in the model's config.
        batch_size: Texts in one forward pass.

    Raises:
        ValueError: If the model has no such label.
    """

    def __init__(self, name: str, label: str = "nothate", batch_size: int = 64) -> None:
        super().__init__()
        path = resolve_model(name, "classifier")
        self.tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        self.model = quicken(
            AutoModelForSequenceClassification.from_pretrained(
                path, dtype=torch.float32, trust_remote_code=False
            )
        )
        self.model.requires_grad_(False)
        set_dropout(self.model, 0.0)
        self.label = label
        self.batch_size = batch_size
        self.column = 0 if self.model.config.num_labels == 1 else self.find_column(label)

    def find_column(self, label: str) -> int:
        """Give the column of a label in :meth:`all_logits`.

        Raises:
            ValueError: If the model has no such label; the message names those that it has.
        """
        labels = name_labels(self.model.config)
        if label.lower() not in labels:
            raise ValueError(
                f"classifier {self.model.name_or_path!r} has no label {label!r}; "
                f"its labels are {sorted(labels)}"
            )
        return labels[label.lower()]

    @torch.no_grad()
    def all_logits(self, texts: Sequence[str], contexts: Sequence[str] | None = None) -> Tensor:
        """Score texts [B] with every label: fp32 [B, labels], in the order of the texts.

        Args:
            texts: B texts.
            contexts: What each is said about, the first text of a pair; where the two are too long
                together the longer one is cut. None scores the texts alone.
        """
        # Longest first, so that each pass is padded little and memory peaks in the first one.
        size = [len(text) for text in texts]
        if contexts is not None:
            size = [own + len(context) for own, context in zip(size, contexts, strict=True)]
        order = sorted(range(len(texts)), key=lambda row: size[row], reverse=True)
        parts = []
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            tokens = self.tokenizer(
                *([[contexts[row] for row in rows]] if contexts is not None else []),
                [texts[row] for row in rows],
                padding=True,
                truncation=True,
                max_length=self._max_length(),
                return_tensors="pt",
            ).to(self.model.device)
            # In fp32 whatever the precision around: a reward rounded to bf16 is rounded to 1/256.
            with torch.autocast(self.model.device.type, enabled=False):
                parts.append(self.model(**tokens).logits)
        logits = torch.cat(parts)
        return logits[torch.tensor(order, device=logits.device).argsort()]

    def _max_length(self) -> int:
        # RoBERTa's position ids start behind the padding id, so two positions are never used.
        return min(self.tokenizer.model_max_length, self.model.config.max_position_embeddings - 2)

    def logits(self, texts: Sequence[str], contexts: Sequence[str] | None = None) -> Tensor:
        """Give the reward of each text: the raw logit of ``label``, fp32 [B]."""
        return self.all_logits(texts, contexts)[:, self.column]

    def rate(self, texts: Sequence[str], toxic_label: str = "hate") -> dict[str, list[float]]:
        """Give each text's toxicity and reward, under these names.

        Args:
            texts: Texts [B].
            toxic_label: The label whose softmax probability is the toxicity, in [0, 1].

        Returns:
            "toxicity" [B], and as "reward" the raw logit of ``label`` [B].

        Raises:
            ValueError: If the model has no such label.
        """
        toxic = self.find_column(toxic_label)
        logits = self.all_logits(texts)
        return {
            "toxicity": logits.softmax(dim=-1)[:, toxic].tolist(),
            "reward": logits[:, self.column].tolist(),
        }


def name_labels(config: Any) -> dict[str, int]:
    """Give the columns of a classifier's labels by their names in lower case."""
    return {str(text).lower(): column for text, column in config.label2id.items()}


def find_label_problem(name: str, label: str) -> str | None:
    """Say why a classifier cannot give the reward of a label, or return None where it can."""
    config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    labels = name_labels(config)
    if config.num_labels == 1 or label.lower() in labels:
        return None
    return f"reward_label: {name!r} has no label {label!r}; its labels are {sorted(labels)}"


class RewardModel(BaseModule):
    """A classifier with one output, trained so that preferred completions score higher.

    The pairwise loss of Bradley and Terry, -log sigmoid(r_j - r_k) for y_j preferred to y_k
    (Ouyang et al. 2022, "Training language models to follow instructions with human feedback",
    equation 1). All pairs of a ranking come from one forward pass over its completions, and weigh
    together as much as any other ranking's, so that long rankings do not dominate. Completions are
    scored by themselves, as :class:`RewardScorer` does in PPO.

    Args:
        backbone: A classifier or an encoder such as roberta-base: hub id, folder, or ``mini``.
        **kwargs: See :class:`BaseModule`.
    """

    kind = "classifier"

    def __init__(self, backbone: str, **kwargs: Any) -> None:
        super().__init__(backbone, **kwargs)

    def attach(self, backbone: PreTrainedModel) -> nn.Module:
        """Train all of the encoder and its head."""
        return backbone.requires_grad_(True)

    def load_backbone(self) -> PreTrainedModel:
        """Load the encoder in fp32, with a fresh head of one output."""
        path = resolve_model(self.backbone_name, self.kind)
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        config.num_labels = 1
        model = AutoModelForSequenceClassification.from_pretrained(
            path,
            config=config,
            dtype=torch.float32,
            trust_remote_code=False,
            # The head of a classifier with other labels is left out, and a new one made.
            ignore_mismatched_sizes=True,
        )
        if self.dropout is not None:
            set_dropout(model, self.dropout)
        return model

    def rewards(self, batch: PreferenceBatch) -> Tensor:
        """Score all completions of a batch of rankings: fp32 [N]."""
        output = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        return output.logits.float().squeeze(-1)

    def sum_losses(self, batch: PreferenceBatch) -> tuple[Tensor, Tensor]:
        """Sum the pairwise losses, each ranking's weighing 1; count the rankings."""
        loss = pairwise_loss(self.rewards(batch), batch["pairs"], batch["weights"])
        return loss, loss.new_tensor(len(batch["ids"]))

    def validation_step(self, batch: PreferenceBatch, batch_idx: int) -> dict[str, Any]:
        """Measure loss and rewards; see :meth:`evaluation_step`."""
        return self.evaluation_step(batch, "val")

    def test_step(self, batch: PreferenceBatch, batch_idx: int) -> dict[str, Any]:
        """Measure loss and rewards; see :meth:`evaluation_step`."""
        return self.evaluation_step(batch, "test")

    def evaluation_step(self, batch: PreferenceBatch, stage: str) -> dict[str, Any]:
        """Give ``{"loss": scalar, "rewards": a list for each ranking}``; log ``<stage>/loss``."""
        rewards, rankings = self.rewards(batch), len(batch["ids"])
        loss = pairwise_loss(rewards, batch["pairs"], batch["weights"]) / rankings
        self.log(f"{stage}/loss", loss, batch_size=rankings, sync_dist=True)
        sizes = [len(ranks) for ranks in batch["ranks"]]
        return {"loss": loss, "rewards": [part.tolist() for part in rewards.split(sizes)]}


def pairwise_loss(rewards: Tensor, pairs: Tensor, weights: Tensor) -> Tensor:
    """Sum the weighted losses -log sigmoid(r_j - r_k) of pairs: a scalar.

    Args:
        rewards: Of all completions, [N].
        pairs: Places j (preferred) and k of each pair among them, [P, 2].
        weights: [P]; those of one ranking sum to 1.
    """
    margin = rewards[pairs[:, 0]] - rewards[pairs[:, 1]]
    return -(weights * F.logsigmoid(margin)).sum()
