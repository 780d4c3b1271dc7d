"""Models from their configs alone: every weight a tensor of no content."""

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

import huggingface_hub
import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

import hub

Kind = Literal["seq2seq", "classifier"]

# d_model, d_ff, layers of encoder and of decoder, heads (of 64 each): Raffel et al. 2020, table 14,
# and the config.json of each model on the hub.
_T5 = {
    "small": (512, 1024, 8, 6),
    "base": (768, 2048, 12, 12),
    "large": (1024, 2816, 24, 16),
    "xl": (2048, 5120, 24, 32),
    "xxl": (4096, 10240, 24, 64),
}
# hidden_size, intermediate_size, layers, heads: Liu et al. 2019, section 5 and appendix B.
_ROBERTA = {"base": (768, 3072, 12, 12), "large": (1024, 4096, 24, 16)}

_HEAD = "lm_head.weight"

HATE_CLASSIFIER = "facebook/roberta-hate-speech-dynabench-r4-target"


class Blueprint(NamedTuple):
    """What a model is made from: its config, and whether its output head is its input embedding."""

    config: PretrainedConfig
    tied: bool


def find_blueprint(name: str, kind: Kind = "seq2seq") -> Blueprint:
    """Find a model's config: in its folder, in the hub's cache, among the known ones, on the hub.

    Args:
        name: Hub id, folder written by ``save_pretrained``, or ``mini``.
        kind: What the model is for.

    Raises:
        ValueError: If there is none, or it is of another kind.
    """
    path = hub.resolve_model(name, kind)
    here = Path(path).is_dir() or hub.cached(path, ["config.json"])
    if not here and (known := _known(path)) is not None:
        return known
    if not here and not hub.reachable():
        raise ValueError(
            f"there is no config.json of {name!r} to plan from: it is no folder, is not in the hub "
            f"cache ({hub.constants.HF_HUB_CACHE}), and the hub does not answer. Name a folder, or "
            f"one of {', '.join(known_names())}"
        )
    fields, _ = PretrainedConfig.get_config_dict(path, local_files_only=here)
    config = AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=here)
    if kind == "seq2seq" and not config.is_encoder_decoder:
        raise ValueError(f"backbone {name!r} is a {config.model_type!r}, not an encoder-decoder")
    names = _weight_names(path)
    if names:
        return Blueprint(config, tied=_HEAD not in names)
    # As the file says it: transformers 5 overrules it in the config of every T5.
    return Blueprint(config, tied=fields.get("tie_word_embeddings", True))


def _weight_names(path: str) -> list[str]:
    """List the weights that a model's safetensors say they hold, where they are at hand.

    Configs that transformers 5 wrote call every T5's head tied; what is saved twice is not.
    """
    found = {name: _find_file(path, name) for name in (SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME)}
    if index := found[SAFE_WEIGHTS_INDEX_NAME]:
        return list(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    if file := found[SAFE_WEIGHTS_NAME]:
        try:
            with safe_open(file, framework="pt") as weights:  # reads the header alone
                return list(weights.keys())
        except SafetensorError as error:
            raise ValueError(
                f"the weights in {file} cannot be read ({error}): copy or download them again"
            ) from error
    return []


def _find_file(path: str, name: str) -> Path | None:
    if Path(path).is_dir():
        file = Path(path, name)
        return file if file.is_file() else None
    cached = huggingface_hub.try_to_load_from_cache(path, name)
    return Path(cached) if isinstance(cached, str) else None


def known_names() -> list[str]:
    """List the models that can be planned without any file of theirs."""
    t5 = [f"google/{family}-{size}" for family in ("flan-t5", "t5-v1_1") for size in _T5]
    return [*t5, *(f"FacebookAI/roberta-{size}" for size in _ROBERTA), HATE_CLASSIFIER]


def _known(name: str) -> Blueprint | None:
    if name == HATE_CLASSIFIER:
        return Blueprint(_roberta("base"), tied=False)
    family, _, size = name.rpartition("-")
    if family in ("google/flan-t5", "google/t5-v1_1") and size in _T5:
        return Blueprint(_t5(size), tied=False)
    if family in ("FacebookAI/roberta", "roberta") and size in _ROBERTA:
        return Blueprint(_roberta(size), tied=False)
    return None


def _t5(size: str) -> PretrainedConfig:
    d_model, d_ff, layers, heads = _T5[size]
    return AutoConfig.for_model(
        "t5", vocab_size=32128, d_model=d_model, d_ff=d_ff, num_layers=layers,
        num_decoder_layers=layers, num_heads=heads, d_kv=64, feed_forward_proj="gated-gelu",
        decoder_start_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip


def _roberta(size: str) -> PretrainedConfig:
    hidden, inner, layers, heads = _ROBERTA[size]
    return AutoConfig.for_model(
        "roberta", vocab_size=50265, hidden_size=hidden, intermediate_size=inner,
        num_hidden_layers=layers, num_attention_heads=heads, max_position_embeddings=514,
        type_vocab_size=1, layer_norm_eps=1e-5, num_labels=2,
    )  # fmt: skip


def build_seq2seq(blueprint: Blueprint) -> PreTrainedModel:
    """Make an encoder-decoder in fp32, as ``load_backbone`` gives it but for its content."""
    model = AutoModelForSeq2SeqLM.from_config(blueprint.config, dtype=torch.float32)
    if not blueprint.tied:
        head: Any = model.get_output_embeddings()
        head.weight = nn.Parameter(torch.empty_like(head.weight))  # it comes tied
    model.config.tie_word_embeddings = blueprint.tied
    return model


def build_classifier(blueprint: Blueprint, labels: int | None = None) -> PreTrainedModel:
    """Make a sequence classifier in fp32, with another number of outputs where one is given."""
    if labels is not None:
        blueprint.config.num_labels = labels
    return AutoModelForSequenceClassification.from_config(blueprint.config, dtype=torch.float32)
