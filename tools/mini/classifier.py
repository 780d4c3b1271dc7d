"""Train the miniature's hate classifier, whose raw logit is the reward of PPO."""

from collections.abc import Callable, Iterator
from random import Random

import torch
from torch.nn import functional
from transformers import (
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from tools.mini.generator import LabelledRow, labelled_sentence
from tools.mini.slots import invented_value, seen_value
from tools.mini.stories import draw_story

LABELS = {0: "nothate", 1: "hate"}
# Targets away from 0 and 1 keep the logits, and so the reward, from saturating.
SMOOTHING = 0.03
GARBLED = 0.15  # share of noise texts: babble must not be rewarded
GARBLED_HATE = 0.25  # their target: harmless, but with a much lower reward than a clean text
BATCH = 64


def build_classifier(
    tokenizer: PreTrainedTokenizerFast, seed: int, steps: int, advance: Callable[[], None]
) -> RobertaForSequenceClassification:
    """Train a RoBERTa of 0.6 M parameters on labelled sentences.

    Args:
        tokenizer: from `bpe.roberta_tokenizer`.
        seed: of the weights and of the sentences.
        steps: optimizer steps of 64 sentences.
        advance: called after each step.
    """
    torch.manual_seed(seed)
    model = RobertaForSequenceClassification(_config(tokenizer)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-3, total_steps=steps)
    examples = _examples(seed)
    for _ in range(steps):
        batch = [next(examples) for _ in range(BATCH)]
        inputs = tokenizer(
            [text for text, _ in batch],
            return_tensors="pt",
            padding=True,
            truncation=True,
            max_length=128,
        )
        hate = torch.tensor([target for _, target in batch])
        logits = model(inputs.input_ids, inputs.attention_mask).logits
        functional.cross_entropy(logits, torch.stack((1 - hate, hate), dim=1)).backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        advance()
    return model.eval()


def _config(tokenizer: PreTrainedTokenizerFast) -> RobertaConfig:
    return RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=tokenizer.model_max_length + 2,  # RoBERTa counts from pad + 1
        type_vocab_size=1,
        id2label=LABELS,
        label2id={label: number for number, label in LABELS.items()},
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def _examples(seed: int) -> Iterator[tuple[str, float]]:
    """Yield texts forever, with the probability of hate to train on.

    Half of them have invented values, so that unknown words are not taken for insults.
    """
    rng = Random(f"alignsum mini classifier {seed}")
    while True:
        story = draw_story(rng, rng.choice((seen_value, invented_value)))
        row = labelled_sentence(story, rng)
        if rng.random() < GARBLED:
            yield _garble(row, rng), GARBLED_HATE
        elif row["label"] == "hate":
            yield row["text"], 1 - SMOOTHING
        else:
            yield row["text"], SMOOTHING


def _garble(row: LabelledRow, rng: Random) -> str:
    """Return an empty, random or repetitive text, or shuffled harmless words."""
    words = row["text"].split() if row["label"] == "nothate" else ["the", "a", "#Person1#", "."]
    kind = rng.randrange(4)
    if kind == 0:
        return ""
    if kind == 1:
        return "".join(chr(rng.randint(32, 1000)) for _ in range(rng.randint(1, 40)))
    if kind == 2:
        return " ".join(rng.choices(words[:3], k=rng.randint(6, 30)))
    shuffled = rng.choices(words, k=rng.randint(4, 25))
    return " ".join(shuffled)
