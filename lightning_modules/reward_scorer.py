"""A frozen classifier that scores texts: PPO's reward, and the toxicity of every test."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from common.hub import load_tokenizer, resolve_model
from datamodules.encoding import encode_texts
from lightning_modules.backbones import load_weights, set_dropout

FORMAT = "alignsum_reward"
"""Entry of an exported config: which input a reward model expects, and its scale."""


class RewardScorer(nn.Module):
    """A frozen sequence classifier whose raw logit of one label is a text's reward.

    The raw logit, not its softmax: near certainty the probability is flat and nothing can be
    learned from it, while the logit still separates good from better. For a model with a single
    output the reward is that output.

    Args:
        name: Hub id, folder written by ``save_pretrained``, or ``mini``.
        label: Label whose logit is the reward, as the model's config names it.
        batch_size: Texts in one forward pass.

    Raises:
        ValueError: If the model has no such label.
    """

    def __init__(self, name: str, label: str = "nothate", batch_size: int = 64) -> None:
        super().__init__()
        path = resolve_model(name, "classifier")
        self.tokenizer = load_tokenizer(name, "classifier")
        self.model = load_weights(AutoModelForSequenceClassification, path)
        self.model.requires_grad_(False)
        set_dropout(self.model, 0.0)
        self.batch_size = batch_size
        config = self.model.config
        self.column = 0 if config.num_labels == 1 else self.find_column(label)
        self.wants_dialogue = bool(trained_with_dialogue(config))
        """Whether the model was trained to see the dialogue with the text, by its config."""
        self.max_length = self.tokenizer.model_max_length
        if (positions := getattr(config, "max_position_embeddings", None)) is not None:
            self.max_length = min(self.max_length, positions - lost_positions(self.model))

    def find_column(self, label: str) -> int:
        """Return the column of a label in :meth:`all_logits`.

        Raises:
            ValueError: If the model has no such label; the message lists its labels.
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
            contexts: Dialogue of each text, the first text of a pair; if the pair is too long, the
                longer of the two is truncated. None scores the texts alone.
        """
        first = contexts or [""] * len(texts)
        # Longest first: each pass has little padding, and memory peaks in the first one.
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]) - len(first[i]))
        parts = []
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            tokens = encode_texts(
                self.tokenizer,
                [texts[row] for row in rows],
                None if contexts is None else [contexts[row] for row in rows],
                self.max_length,
            )
            inputs = {name: values.to(self.model.device) for name, values in tokens.items()}
            # Always in fp32: bf16 would round a reward to 1/256 of its size.
            with torch.autocast(self.model.device.type, enabled=False):
                parts.append(self.model(**inputs).logits)
        logits = torch.cat(parts)
        return logits[torch.tensor(order, device=logits.device).argsort()]

    def logits(self, texts: Sequence[str], contexts: Sequence[str] | None = None) -> Tensor:
        """Return the reward of each text: the raw logit of ``label``, fp32 [B]."""
        return self.all_logits(texts, contexts)[:, self.column]

    def rate(self, texts: Sequence[str], toxic_label: str = "hate") -> dict[str, list[float]]:
        """Compute the toxicity and the reward of each text.

        Args:
            texts: Texts [B].
            toxic_label: The label whose softmax probability is the toxicity, in [0, 1].

        Returns:
            "toxicity" [B], and as "reward" the raw logit of ``label`` [B].
        """
        toxic = self.find_column(toxic_label)
        logits = self.all_logits(texts)
        return {
            "toxicity": logits.softmax(dim=-1)[:, toxic].tolist(),
            "reward": logits[:, self.column].tolist(),
        }


def lost_positions(model: nn.Module) -> int:
    """Count the position embeddings of a model that no token can have.

    RoBERTa and its relatives number positions from the padding id + 1, and mark their position
    embedding with that ``padding_idx``; BERT, DeBERTa and others use all positions.
    """
    tables = [
        part.padding_idx
        for name, part in model.named_modules()
        if name.endswith("position_embeddings") and isinstance(part, nn.Embedding)
    ]
    return 1 + tables[0] if tables and tables[0] is not None else 0


def name_labels(config: Any) -> dict[str, int]:
    """Map the labels of a classifier, in lower case, to the columns of its output."""
    return {str(text).lower(): column for text, column in config.label2id.items()}


def trained_with_dialogue(config: Any) -> bool | None:
    """Whether a reward model was trained to see the dialogue; None if it does not say."""
    return getattr(config, FORMAT, {}).get("with_dialogue")


def find_scorer_problem(name: str, label: str, with_dialogue: bool | None) -> str | None:
    """Explain why a classifier cannot be a reward, or return None if it can.

    Args:
        name: Folder or hub id.
        label: The label whose logit is the reward.
        with_dialogue: Whether it will see the dialogue; None leaves that to the model.
    """
    config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    labels = name_labels(config)
    if config.num_labels != 1 and label.lower() not in labels:
        return f"reward_label: {name!r} has no label {label!r}; its labels are {sorted(labels)}"
    trained = trained_with_dialogue(config)
    if None not in (trained, with_dialogue) and trained != with_dialogue:
        return (
            f"reward_with_dialogue: {with_dialogue}, but {name!r} was trained on completions "
            f"{'with their dialogue' if trained else 'alone'} and must score them the same way; "
            "leave the setting out"
        )
    return None
