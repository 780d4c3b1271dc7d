"""Models of full size with random weights, and batches of real dialogues, for benchmarks."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from benchmarks.dialogsum import read_dialogsum
from common.hub import load_tokenizer
from datamodules.batching import Batch, Collator, Example
from datamodules.encoding import Encoder
from datamodules.prompts import Instruction

FLAN_T5_BASE = {
    "vocab_size": 32128, "d_model": 768, "d_kv": 64, "d_ff": 2048, "num_layers": 12,
    "num_decoder_layers": 12, "num_heads": 12, "feed_forward_proj": "gated-gelu",
}  # fmt: skip
"""Shape of google/flan-t5-base: 247,577,856 parameters with its untied head."""

ROBERTA_BASE = {"vocab_size": 50265}
"""Shape of roberta-base, which is that of its config's defaults."""


def save_tokenizer(folder: Path, special: list[str], template: str, size: int = 32000) -> None:
    """Save a byte-level BPE learnt from the dialogues: FLAN's own cannot be had offline.

    Args:
        folder: Where to.
        special: Special tokens, in the order of their ids.
        template: How they stand around a text.
        size: Most tokens of the vocabulary.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = [
        text for row in read_dialogsum("validation") for text in (row.dialogue, *row.references)
    ]
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    )
    used = [(token, place) for place, token in enumerate(special) if token in template.split()]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=used)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
        model_max_length=512,
    ).save_pretrained(folder)  # fmt: skip


def save_t5_base(folder: Path, tokens: int = 32000) -> str:
    """Save a T5 of FLAN-T5-base's shape, its head untied, with a tokenizer of so many tokens."""
    save_tokenizer(folder, ["<pad>", "</s>", "<unk>"], "$A </s>", tokens)
    return save_t5(folder, FLAN_T5_BASE)


def save_t5(folder: Path, shape: dict[str, Any]) -> str:
    """Save a T5 of a shape with random weights, its head untied."""
    torch.manual_seed(0)
    config = T5Config(**shape, decoder_start_token_id=0, tie_word_embeddings=False)
    model = T5ForConditionalGeneration(config)
    # transformers 5 ties the head whatever the config says; FLAN's is a matrix of its own.
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight) * 0.05)
    model.save_pretrained(folder)
    return str(folder)


def save_roberta_base(folder: Path) -> str:
    """Save a classifier of RoBERTa-base's shape with the labels nothate and hate."""
    save_tokenizer(folder, ["<s>", "<pad>", "</s>", "<unk>"], "<s> $A </s>")
    return save_roberta(folder, ROBERTA_BASE)


def save_roberta(folder: Path, shape: dict[str, Any]) -> str:
    """Save a classifier of a shape with random weights and the labels nothate and hate."""
    torch.manual_seed(0)
    config = RobertaConfig(
        **shape, max_position_embeddings=514, type_vocab_size=1,
        id2label={0: "nothate", 1: "hate"}, label2id={"nothate": 0, "hate": 1},
    )  # fmt: skip
    RobertaForSequenceClassification(config).save_pretrained(folder)
    return str(folder)


def make_batch_of_dialogues(tokenizer: str, rows: int) -> Batch:
    """Make a batch of real dialogues of 200 to 1000 characters, the original's choice."""
    chosen = [row for row in read_dialogsum("validation") if 200 < len(row.dialogue) <= 1000][:rows]
    encoder = Encoder(load_tokenizer(tokenizer), Instruction(), [], 512, 128)
    encoded = encoder.encode(chosen)
    examples = [
        Example(place, row.id, row.dialogue, list(row.references), source, target)
        for place, (row, source, target) in enumerate(
            zip(chosen, encoded.sources, encoded.targets, strict=True)
        )
    ]
    return Collator(encoder.tokenizer.pad_token_id)(examples)
