"""Reward models: one that is trained on rankings, and the frozen scorer that PPO asks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from datamodules.encoding import encode_texts
from datamodules.preferences import Format, PreferenceBatch
from hub import load_tokenizer, reading, resolve_model
from lightning_modules.backbones import set_dropout
from lightning_modules.base import BaseModule
from lightning_modules.centring import Centring, centre
from lightning_modules.preference_losses import pairwise_loss

FORMAT = "alignsum_reward"
"""Name in an exported config under which stands how the model is to be asked, and its scale."""


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
        self.tokenizer = load_tokenizer(name, "classifier")
        with reading(path):
            self.model = AutoModelForSequenceClassification.from_pretrained(
                path, dtype=torch.float32, trust_remote_code=False
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
            tokens = encode_texts(
                self.tokenizer,
                [texts[row] for row in rows],
                None if contexts is None else [contexts[row] for row in rows],
                self._max_length(),
            )
            inputs = {name: values.to(self.model.device) for name, values in tokens.items()}
            # In fp32 whatever the precision around: a reward rounded to bf16 is rounded to 1/256.
            with torch.autocast(self.model.device.type, enabled=False):
                parts.append(self.model(**inputs).logits)
        logits = torch.cat(parts)
        return logits[torch.tensor(order, device=logits.device).argsort()]

    def _max_length(self) -> int:
        # RoBERTa's position ids start behind the padding id, so two positions are never used.
        return min(self.tokenizer.model_max_length, self.model.config.max_position_embeddings - 2)

    @property
    def wants_dialogue(self) -> bool:
        """Whether it was trained to see the dialogue beside the text, as its config says."""
        return bool(trained_with_dialogue(self.model.config))

    def logits(self, texts: Sequence[str], contexts: Sequence[str] | None = None) -> Tensor:
        """Give the reward of each text: the raw logit of ``label``, fp32 [B]."""
        return self.all_logits(texts, contexts)[:, self.column]

    def rate(
        self,
        texts: Sequence[str],
        toxic_label: str = "hate",
        contexts: Sequence[str] | None = None,
    ) -> dict[str, list[float]]:
        """Give each text's toxicity and reward, under these names.

        Args:
            texts: Texts [B].
            toxic_label: The label whose softmax probability is the toxicity, in [0, 1].
            contexts: See :meth:`all_logits`.

        Returns:
            "toxicity" [B], and as "reward" the raw logit of ``label`` [B].

        Raises:
            ValueError: If the model has no such label.
        """
        toxic = self.find_column(toxic_label)
        logits = self.all_logits(texts, contexts)
        return {
            "toxicity": logits.softmax(dim=-1)[:, toxic].tolist(),
            "reward": logits[:, self.column].tolist(),
        }


def name_labels(config: Any) -> dict[str, int]:
    """Give the columns of a classifier's labels by their names in lower case."""
    return {str(text).lower(): column for text, column in config.label2id.items()}


def trained_with_dialogue(config: Any) -> bool | None:
    """Whether a reward model was trained to see the dialogue; None for what is none of ours."""
    return getattr(config, FORMAT, {}).get("with_dialogue")


def find_scorer_problem(name: str, label: str, with_dialogue: bool | None) -> str | None:
    """Say why a classifier cannot be a reward, or return None where it can.

    Args:
        name: Folder or hub id.
        label: The label whose logit is the reward.
        with_dialogue: Whether it is to see the dialogue; None leaves that to the model.
    """
    config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    labels = name_labels(config)
    if config.num_labels != 1 and label.lower() not in labels:
        return f"reward_label: {name!r} has no label {label!r}; its labels are {sorted(labels)}"
    trained = trained_with_dialogue(config)
    if None not in (trained, with_dialogue) and trained != with_dialogue:
        return (
            f"reward_with_dialogue: {with_dialogue}, but {name!r} was trained on completions "
            f"{'with their dialogue' if trained else 'alone'} and has to be asked so; leave the "
            "setting out"
        )
    return None


class RewardModel(BaseModule):
    """A classifier with one output, trained so that preferred completions score higher.

    The pairwise loss of Bradley and Terry, -log sigmoid(r_j - r_k) for y_j preferred to y_k
    (Ouyang et al. 2022, "Training language models to follow instructions with human feedback",
    equation 1). All pairs of a ranking come from one forward pass over its completions, and weigh
    together as much as any other ranking's, so that long rankings do not dominate.

    Completions are scored by themselves or with their dialogue, as the data module shows them. The
    export records which, so that PPO asks in the same way. If the data module has reference
    summaries, the exported and the tested model gives them 0 on average.

    Args:
        backbone: A classifier or an encoder such as roberta-base: hub id, folder, or ``mini``.
        margin: By how much, for each rank between them, the better of two completions has to lead:
            the loss is -log sigmoid(r_j - r_k - margin * distance).
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
        """Load the encoder in fp32, with a fresh head of one output."""
        return load_encoder(self.backbone_name, self.dropout, num_labels=1)

    def rewards(self, batch: PreferenceBatch) -> Tensor:
        """Score all completions of a batch of rankings: fp32 [N]."""
        return self.model(**batch["inputs"]).logits.float().squeeze(-1)

    def loss(self, rewards: Tensor, batch: PreferenceBatch) -> Tensor:
        """Sum the pairwise losses of a batch, each ranking's weighing 1: a scalar."""
        return pairwise_loss(
            rewards, batch["pairs"], batch["weights"], batch["distances"], self.margin
        )

    def sum_losses(self, batch: PreferenceBatch) -> tuple[Tensor, Tensor]:
        """Sum the pairwise losses, each ranking's weighing 1; count the rankings."""
        loss = self.loss(self.rewards(batch), batch)
        return loss, loss.new_tensor(len(batch["ids"]))

    def on_test_start(self) -> None:
        """Shift the rewards of a checkpoint as those of the export are."""
        super().on_test_start()
        self.centre()

    def validation_step(self, batch: PreferenceBatch, batch_idx: int) -> dict[str, Any]:
        """Measure loss and rewards; see :meth:`evaluation_step`."""
        return self.evaluation_step(batch, "val")

    def test_step(self, batch: PreferenceBatch, batch_idx: int) -> dict[str, Any]:
        """Measure loss and rewards; see :meth:`evaluation_step`."""
        return self.evaluation_step(batch, "test")

    def evaluation_step(self, batch: PreferenceBatch, stage: str) -> dict[str, Any]:
        """Give ``{"loss": scalar, "rewards": a list for each ranking}``; log ``<stage>/loss``."""
        rewards, count = self.rewards(batch), len(batch["ids"])
        loss = self.loss(rewards, batch) / count
        self.log_mean(f"{stage}/loss", loss, count)
        sizes = [len(ranking.completions) for ranking in batch["rankings"]]
        return {"loss": loss, "rewards": [part.tolist() for part in rewards.split(sizes)]}

    # What a run leaves --------------------------------------------------------------------------

    def centre(self) -> Centring | None:
        """Shift the rewards so that the data module's references, if any, have a mean of 0."""
        data = getattr(self._trainer, "datamodule", None)
        batches = getattr(data, "reference_batches", None)
        return None if batches is None else centre(self.model, batches())

    def export(self, path: str | Path) -> dict[str, Any]:
        """Write the model, shifted, with a config that says how to ask it and what its scale is.

        Returns:
            Under "reward" what the config says, for the run's summary.
        """
        found, about = self.centre(), {}
        data = getattr(self._trainer, "datamodule", None)
        if (asked := getattr(data, "format", None)) is not None:
            about = Format(*asked)._asdict()
            self.tokenizer.model_max_length = about["max_length"]
        if found is not None:
            about |= found._asdict()
        setattr(self.model.config, FORMAT, about)
        super().export(path)
        return {"reward": about}


def load_encoder(name: str, dropout: float | None, **config: Any) -> PreTrainedModel:
    """Load an encoder in fp32 with a classification head, a fresh one where its shape is new.

    Args:
        name: A classifier or an encoder: hub id, folder, or ``mini``.
        dropout: Dropout rate; None keeps the model's own.
        **config: What its config is to say, such as ``num_labels``.
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
            # The head of a classifier with other labels is left out, and a new one made.
            ignore_mismatched_sizes=True,
        )
    if dropout is not None:
        set_dropout(model, dropout)
    return model
