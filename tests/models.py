"""Tiny models in the layouts of the big ones, made here, in the format of ``save_pretrained``."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from common.hub import load_tokenizer
from lightning_modules.acceleration import accelerate
from lightning_modules.backbones import EncoderDecoder, load_backbone, set_dropout
from lightning_modules.policies.adapters import attach_adapter
from lightning_modules.policies.lora import LoRASettings

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())


def byte_tokenizer(special: list[str], template: str) -> Tokenizer:
    """One token a byte: any text, no merges."""
    vocabulary = {token: index for index, token in enumerate([*special, *BYTES])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    used = [(token, index) for index, token in enumerate(special) if token in template.split()]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=used)
    return tokenizer


def save_t5(folder: Path, seed: int = 0) -> str:
    """A T5 v1.1 with an untied head: 2 + 2 layers of width 32."""
    tokenizer = byte_tokenizer(["<pad>", "</s>", "<unk>"], "$A </s>")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=512,
    ).save_pretrained(folder)
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=3 + len(BYTES),
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        decoder_start_token_id=0,
        dropout_rate=0.1,
        tie_word_embeddings=False,
    )
    model = T5ForConditionalGeneration(config)
    # transformers 5 ties the head whatever the config says; FLAN's is its own matrix. Small
    # enough that the distribution is soft: every token can be sampled.
    head = torch.randn_like(model.lm_head.weight) * 0.05
    model.lm_head.weight = torch.nn.Parameter(head)
    model.save_pretrained(folder)
    return str(folder)


def save_tied_t5(folder: Path) -> str:
    """A T5 v1.0, such as t5-small: the head is the embedding; without a tokenizer."""
    config = T5Config(
        vocab_size=40, d_model=16, d_kv=4, d_ff=32, num_layers=1, num_heads=4,
        decoder_start_token_id=0,
    )  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(folder)
    return str(folder)


def save_roberta(folder: Path, seed: int = 0) -> str:
    """A RoBERTa classifier of nothate and hate: one layer of width 32."""
    tokenizer = byte_tokenizer(["<s>", "<pad>", "</s>", "<unk>"], "<s> $A </s>")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=126,
    ).save_pretrained(folder)
    torch.manual_seed(seed)
    config = RobertaConfig(
        vocab_size=4 + len(BYTES),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
        type_vocab_size=1,
        id2label={0: "nothate", 1: "hate"},
        label2id={"nothate": 0, "hate": 1},
    )
    model = RobertaForSequenceClassification(config)
    # Fresh heads are so small that all texts would score alike.
    torch.nn.init.normal_(model.classifier.out_proj.weight, std=1.0)
    torch.nn.init.normal_(model.classifier.dense.weight, std=0.5)
    model.save_pretrained(folder)
    return str(folder)


def move_lora(model: nn.Module, std: float = 0.3) -> None:
    """Let a fresh LoRA change something: its B is 0, and as long as it is, A has no gradient."""
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=std)


def make_lora(t5: str, **settings: Any) -> Any:
    """A LoRA of rank 4 that changes something, without dropout, on quick layers, in train mode."""
    torch.manual_seed(0)
    model = attach_adapter(load_backbone(t5), LoRASettings(r=4, alpha=8, **settings).config())
    set_dropout(model, 0.0)
    move_lora(model)
    accelerate(model)
    return model.train()


def wrap(model: Any) -> EncoderDecoder:
    """A tiny T5, with or without an adapter, behind the backbone interface."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return EncoderDecoder(model, load_tokenizer(base.name_or_path))


def name_backbone(export: Path, place: Path) -> None:
    """Have an exported adapter say that it was trained on what lies in another folder."""
    file = export / "adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(config | {"base_model_name_or_path": str(place)}))
