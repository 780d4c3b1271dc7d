"""Tiny random decoder-only models of many architectures, built from their own config classes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf

from tests.models import BYTES, byte_tokenizer

COMMON = {
    "vocab_size": 3 + len(BYTES), "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 128,
    "initializer_range": 0.2, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2,
}  # fmt: skip


def decoder(kind: str, name: str = "ForCausalLM", **more: Any) -> Callable[[], Any]:
    def build() -> Any:
        config = getattr(hf, f"{kind}Config")(**COMMON | more)
        return getattr(hf, kind.removesuffix("Text") + name)(config)

    return build


SLIDING: dict[str, Any] = {
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": 4,
}

DECODERS: dict[str, Callable[[], Any]] = {
    "llama": decoder("Llama", num_key_value_heads=2),
    "llama-tied": decoder("Llama", tie_word_embeddings=True, attention_dropout=0.1),
    "qwen2": decoder("Qwen2", num_key_value_heads=2, use_sliding_window=True, **SLIDING),
    "qwen3": decoder("Qwen3", num_key_value_heads=2, head_dim=8),
    "gemma2": decoder(
        "Gemma2", num_key_value_heads=2, head_dim=8, final_logit_softcapping=3.0, **SLIDING
    ),
    "gemma3": decoder("Gemma3Text", num_key_value_heads=2, head_dim=8, **SLIDING),
    "gpt2": decoder(
        "GPT2", "LMHeadModel", n_inner=48, resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.1
    ),
    "gpt-neox": decoder("GPTNeoX", rotary_pct=0.5, hidden_dropout=0.1),
    "opt": decoder("OPT", ffn_dim=48, word_embed_proj_dim=16, dropout=0.1),
    "phi": decoder("Phi", partial_rotary_factor=0.5, resid_pdrop=0.1),
    "mistral": decoder("Mistral", num_key_value_heads=2, sliding_window=4),
    "mixtral": decoder("Mixtral", num_key_value_heads=2, num_local_experts=4),
    "bloom": decoder("Bloom", n_layer=2, n_head=4),
    "mamba": decoder("Mamba", state_size=4),
    "rwkv": decoder("Rwkv", attention_hidden_size=32, context_length=128),
}  # fmt: skip
"""Positions learned, rotary, partly rotary and by distance; windows; a memory of another kind."""

WITHOUT_CACHE = {"mamba", "rwkv"}
"""Those whose memory is not keys and values."""


CHAT = (
    "{% for m in messages %}{{ '<s>' + m.role + '\n' + m.content + '</s>' }}{% endfor %}"
    "{{ '<s>assistant\n' }}"
)


def make_tokenizer() -> hf.PreTrainedTokenizerFast:
    """One token a byte, with a BOS that the tokenizer puts before every text."""
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=byte_tokenizer(["<pad>", "</s>", "<s>"], "<s> $A"), pad_token="<pad>",
        eos_token="</s>", bos_token="<s>", chat_template=CHAT,
    )  # fmt: skip


def build(name: str) -> tuple[Any, hf.PreTrainedTokenizerFast]:
    torch.manual_seed(0)
    model = DECODERS[name]()
    torch.manual_seed(1)
    for parameter in model.parameters():  # biases and norms that are not 0 and 1
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model, make_tokenizer()


def save(name: str, folder: Path) -> str:
    model, tokenizer = build(name)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
