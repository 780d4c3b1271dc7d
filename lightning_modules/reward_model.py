"""Reward models: the frozen classifier that scores texts."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lightning_modules.backbones import resolve_model, set_dropout


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
        self.model = AutoModelForSequenceClassification.from_pretrained(
            path, dtype=torch.float32, trust_remote_code=False
        )
        self.model.requires_grad_(False)
        set_dropout(self.model, 0.0)
        self.label = label
        self.batch_size = batch_size
        self.column = 0 if self.model.config.num_labels == 1 else self._column(label)

    def _column(self, label: str) -> int:
        labels = {str(text).lower(): index for text, index in self.model.config.label2id.items()}
        if label.lower() not in labels:
            raise ValueError(
                f"reward model {self.model.name_or_path!r} has no label {label!r}; "
                f"its labels are {sorted(labels)}"
            )
        return labels[label.lower()]

    @torch.no_grad()
    def all_logits(self, texts: Sequence[str]) -> Tensor:
        """Score texts [B] with every label: fp32 [B, labels], in the order of the texts."""
        # Longest first, so that each pass is padded little and memory peaks in the first one.
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]), reverse=True)
        parts = []
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            tokens = self.tokenizer(
                [texts[row] for row in rows],
                padding=True,
                truncation=True,
                max_length=self._max_length(),
                return_tensors="pt",
            ).to(self.model.device)
            parts.append(self.model(**tokens).logits.float())
        logits = torch.cat(parts)
        return logits[torch.tensor(order, device=logits.device).argsort()]

    def _max_length(self) -> int:
        # RoBERTa's position ids start behind the padding id, so two positions are never used.
        return min(self.tokenizer.model_max_length, self.model.config.max_position_embeddings - 2)

    def logits(self, texts: Sequence[str]) -> Tensor:
        """Give the reward of each text: the raw logit of ``label``, fp32 [B]."""
        return self.all_logits(texts)[:, self.column]

    def probability(self, texts: Sequence[str], label: str = "hate") -> Tensor:
        """Give the softmax probability of a label for each text: fp32 [B], in [0, 1]."""
        return self.all_logits(texts).softmax(dim=-1)[:, self._column(label)]
