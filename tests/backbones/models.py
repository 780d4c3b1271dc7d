"""Tiny random encoder-decoders of many architectures, built from their own config classes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn

VOCABULARY = 64


def make_tokenizer(pad: int, eos: int) -> hf.PreTrainedTokenizerFast:
    words = [f"w{i}" for i in range(VOCABULARY)]
    words[pad], words[eos] = "<pad>", "</s>"
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="w5"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="w5"
    )


def t5(tied: bool = False, kind: str = "T5", **more: Any) -> Callable[[], Any]:
    def build() -> Any:
        config = getattr(hf, f"{kind}Config")(
            vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_decoder_layers=2,
            num_heads=4, decoder_start_token_id=0, dropout_rate=0.1, tie_word_embeddings=tied,
            **more,
        )  # fmt: skip
        model = getattr(hf, f"{kind}ForConditionalGeneration")(config)
        if not tied:
            model.lm_head.weight = nn.Parameter(torch.randn(VOCABULARY, 32) * 0.1)
        return model

    return build


BART = {
    "vocab_size": VOCABULARY, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48, "max_position_embeddings": 64, "dropout": 0.1, "init_std": 0.2,
}  # fmt: skip


def bart(kind: str, name: str = "ForConditionalGeneration", **more: Any) -> Callable[[], Any]:
    def build() -> Any:
        config = getattr(hf, f"{kind}Config")(**BART | more)
        return getattr(hf, f"{kind}{name}")(config)

    return build


def t5gemma() -> Any:
    part = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "sliding_window": 4, "query_pre_attn_scalar": 8, "final_logit_softcapping": 3.0,
        "attn_logit_softcapping": 5.0, "attention_dropout": 0.1, "dropout_rate": 0.1,
        "initializer_range": 0.3, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2,
    }  # fmt: skip
    config = hf.T5GemmaConfig(
        encoder=dict(part), decoder=dict(part), vocab_size=VOCABULARY, dropout_rate=0.1,
        attention_dropout=0.1, pad_token_id=0, eos_token_id=1, bos_token_id=2,
    )  # fmt: skip
    config.tie_word_embeddings = True
    return hf.T5GemmaForConditionalGeneration(config)


def prophetnet() -> Any:
    config = hf.ProphetNetConfig(
        vocab_size=VOCABULARY, hidden_size=32, encoder_ffn_dim=48, num_encoder_layers=2,
        num_encoder_attention_heads=4, decoder_ffn_dim=48, num_decoder_layers=2,
        num_decoder_attention_heads=4, max_position_embeddings=64, init_std=0.2, pad_token_id=0,
        eos_token_id=1, decoder_start_token_id=0,
    )  # fmt: skip
    return hf.ProphetNetForConditionalGeneration(config)


def fsmt() -> Any:
    more = {"langs": ["en", "de"], "src_vocab_size": VOCABULARY, "tgt_vocab_size": VOCABULARY}
    return bart("FSMT", **more)()


def bert2bert() -> Any:
    part = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 4, "intermediate_size": 48, "initializer_range": 0.2,
    }  # fmt: skip
    config = hf.EncoderDecoderConfig.from_encoder_decoder_configs(
        hf.BertConfig(**part), hf.BertConfig(**part)
    )
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 2, 0, 1
    return hf.EncoderDecoderModel(config=config)


def roberta2gpt2() -> Any:
    part = {"vocab_size": VOCABULARY, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    encoder = hf.RobertaConfig(
        **part, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        initializer_range=0.2,
    )  # fmt: skip
    decoder = hf.GPT2Config(**part, n_embd=32, n_head=4, n_layer=2, initializer_range=0.2)
    config = hf.EncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 2, 0, 1
    return hf.EncoderDecoderModel(config=config)


def t5gemma2() -> Any:
    """With a vision tower, which text does not pass through."""
    part = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4,
        "query_pre_attn_scalar": 8, "initializer_range": 0.3, "pad_token_id": 0, "eos_token_id": 1,
        "bos_token_id": 2,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    encoder = {
        "text_config": dict(part), "vision_config": vision, "mm_tokens_per_image": 1,
        "boi_token_index": 60, "eoi_token_index": 61, "image_token_index": 62,
    }  # fmt: skip
    config = hf.T5Gemma2Config(
        encoder=encoder, decoder=dict(part), image_token_index=62, dropout_rate=0.1,
        initializer_range=0.3,
    )  # fmt: skip
    return hf.T5Gemma2ForConditionalGeneration(config)


def seamless() -> Any:
    config = hf.SeamlessM4TConfig(
        **{k: v for k, v in BART.items() if k not in ("d_model", "dropout", "init_std")},
        hidden_size=32, speech_encoder_layers=1, speech_encoder_attention_heads=4,
        speech_encoder_intermediate_size=48, t2u_encoder_layers=1, t2u_decoder_layers=1,
        initializer_range=0.2, pad_token_id=0, eos_token_id=1, bos_token_id=2,
        decoder_start_token_id=1,
    )  # fmt: skip
    return hf.SeamlessM4TForTextToText(config)


BIGBIRD = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 2}


class Architecture(NamedTuple):
    build: Callable[[], Any]
    pad: int = 0
    eos: int = 1


ARCHITECTURES = {
    "t5-v1.0-tied": Architecture(t5(tied=True, feed_forward_proj="relu")),
    "t5-v1.1": Architecture(t5(feed_forward_proj="gated-gelu")),
    "mt5": Architecture(t5(kind="MT5")),
    "umt5-tied": Architecture(t5(tied=True, kind="UMT5")),
    "longt5": Architecture(t5(kind="LongT5", local_radius=4)),
    "switch": Architecture(
        t5(kind="SwitchTransformers", num_experts=2, expert_capacity=64, router_jitter_noise=0.1)
    ),
    "bart": Architecture(
        bart("Bart", activation_dropout=0.1, attention_dropout=0.1, forced_eos_token_id=None), 1, 2
    ),
    "bart-forced-bos": Architecture(bart("Bart"), 1, 2),
    "mbart": Architecture(bart("MBart", decoder_start_token_id=2), 1, 2),
    "mbart-no-start": Architecture(bart("MBart"), 1, 2),
    "led": Architecture(
        lambda: hf.LEDForConditionalGeneration(
            hf.LEDConfig(**{k: v for k, v in BART.items() if k != "max_position_embeddings"},
                         max_encoder_position_embeddings=64, max_decoder_position_embeddings=64,
                         attention_window=4)
        ), 1, 2,
    ),
    "m2m100": Architecture(
        bart("M2M100", encoder_layerdrop=0.5, decoder_layerdrop=0.5, decoder_start_token_id=2), 1, 2
    ),
    "nllb-moe": Architecture(
        bart("NllbMoe", num_experts=4, encoder_sparse_step=2, decoder_sparse_step=2,
             expert_capacity=64, moe_token_dropout=0.2, decoder_start_token_id=2), 1, 2,
    ),
    "plbart": Architecture(bart("PLBart", decoder_start_token_id=2), 1, 2),
    "pegasus": Architecture(bart("Pegasus", scale_embedding=True)),
    "pegasus-x": Architecture(
        bart("PegasusX", scale_embedding=True, block_size=8, num_global_tokens=4)
    ),
    "bigbird-pegasus": Architecture(bart("BigBirdPegasus", **BIGBIRD)),
    "bigbird-sparse": Architecture(
        bart("BigBirdPegasus", attention_type="block_sparse", block_size=2, num_random_blocks=1,
             **BIGBIRD)
    ),
    "marian": Architecture(
        bart("Marian", "MTModel", scale_embedding=True, pad_token_id=0, eos_token_id=1,
             decoder_start_token_id=0, decoder_vocab_size=VOCABULARY, forced_eos_token_id=1)
    ),
    "blenderbot": Architecture(
        bart("Blenderbot", scale_embedding=True, pad_token_id=0, eos_token_id=2), 0, 2
    ),
    "blenderbot-small": Architecture(bart("BlenderbotSmall", scale_embedding=True), 0, 2),
    "prophetnet": Architecture(prophetnet),
    "mvp": Architecture(bart("Mvp"), 1, 2),
    "fsmt": Architecture(fsmt, 1, 2),
    "bert2bert": Architecture(bert2bert),
    "roberta2gpt2": Architecture(roberta2gpt2),
    "seamless": Architecture(seamless),
    "t5gemma": Architecture(t5gemma),
    "t5gemma2": Architecture(t5gemma2),
}  # fmt: skip


def build(name: str) -> tuple[Any, hf.PreTrainedTokenizerFast]:
    torch.manual_seed(0)
    kind = ARCHITECTURES[name]
    model = kind.build()
    if name == "bart-forced-bos":
        model.generation_config.forced_bos_token_id = 7
    return model, make_tokenizer(kind.pad, kind.eos)


def make_prompts(pad: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    ids = torch.randint(5, VOCABULARY, (6, 12))
    mask = torch.arange(12) < torch.tensor([12, 9, 5, 12, 3, 8])[:, None]
    return ids.masked_fill(~mask, pad), mask.long()


UNCACHED = {"nllb-moe", "prophetnet", "fsmt"}
"""Those whose cached passes differ from their full ones, in transformers 5.23 itself."""
