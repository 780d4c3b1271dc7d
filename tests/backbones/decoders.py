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
    "phi3": decoder("Phi3", num_key_value_heads=2),
    "gpt-oss": decoder(
        "GptOss", num_key_value_heads=2, head_dim=8, num_local_experts=4, num_experts_per_tok=2,
        sliding_window=4,
    ),
    "gemma3n": decoder(
        "Gemma3nText", num_key_value_heads=2, head_dim=8, vocab_size_per_layer_input=3 + len(BYTES),
        hidden_size_per_layer_input=8, laurel_rank=4, num_kv_shared_layers=0, altup_num_inputs=2,
        activation_sparsity_pattern=[0.0, 0.0], **SLIDING,
    ),
    "deepseek-v3": decoder(
        "DeepseekV3", n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1,
        moe_intermediate_size=16, kv_lora_rank=8, q_lora_rank=8, qk_rope_head_dim=8,
        qk_nope_head_dim=8, v_head_dim=8, first_k_dense_replace=1,
    ),
    "llama4": decoder(
        "Llama4Text", num_key_value_heads=2, head_dim=8, num_local_experts=2,
        intermediate_size_mlp=48, attention_chunk_size=8,
    ),
    "falcon-h1": decoder(
        "FalconH1", num_key_value_heads=2, head_dim=8, mamba_d_ssm=64, mamba_n_heads=8,
        mamba_d_head=8, mamba_d_state=8, mamba_n_groups=1, mamba_chunk_size=4,
    ),
    "lfm2": decoder(
        "Lfm2", num_key_value_heads=2, layer_types=["conv", "full_attention"], block_ff_dim=48,
        block_multiple_of=8,
    ),
    "roberta": decoder("Roberta", is_decoder=True),
    "rwkv": decoder("Rwkv", attention_hidden_size=32, context_length=128),
}  # fmt: skip
"""Positions learned, rotary, partly rotary and by distance; windows;
latent keys; layers that share embeddings; a memory of another kind, alone or beside keys."""

WITHOUT_CACHE = {"mamba", "rwkv", "falcon-h1", "lfm2", "roberta"}
"""Those whose memory is not keys and values, or whose positions do not follow the mask."""


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
