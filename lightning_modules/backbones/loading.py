"""Load and check the pretrained language model that every method starts from."""

import logging
import warnings
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import logging as transformers_logging

from common.hub import NO_TEXT, Kind, generates_text, reading, resolve_model
from lightning_modules.backbones.dropout import set_dropout

logger = logging.getLogger(__name__)

_FP16 = {"16", "16-mixed", "16-true", "fp16", "transformer-engine-float16"}
_PURE = {"16-true", "bf16-true", "transformer-engine", "transformer-engine-float16"}
_OVERFLOWS_FP16 = {"t5", "mt5", "umt5", "longt5", "switch_transformers"}
_CHECKPOINTED = (GradientCheckpointingLayer, PreTrainedModel)


def find_precision_problem(precision: str | int | None, model_type: str = "t5") -> str | None:
    """Explain why a Trainer precision does not suit an architecture, or return None.

    Args:
        precision: The Trainer's setting.
        model_type: ``config.model_type`` of the backbone.
    """
    if str(precision) in _FP16 and model_type in _OVERFLOWS_FP16:
        return (
            f"trainer.precision: {precision!r} is fp16, and T5's feed-forward activations overflow "
            "it (they exceed 65,504 and the loss turns NaN); use 'bf16-mixed', or '32-true' where "
            "bf16 is slow"
        )
    if str(precision) in _PURE:
        return (
            f"trainer.precision: {precision!r} keeps the weights themselves in low precision, "
            "where an update of 1e-5 rounds to nothing; use 'bf16-mixed', which keeps them in fp32"
        )
    return None


def find_frozen_problem(precision: str | int | None, strategy: Any) -> str | None:
    """Explain why a frozen backbone cannot be kept in bf16 in a run, or return None."""
    if str(precision) != "bf16-mixed":
        return f"model.frozen_bf16: set trainer.precision to 'bf16-mixed' (it is {precision!r})"
    if "fsdp" in str(strategy).lower() or "Sharded" in type(strategy).__name__:
        return "model.frozen_bf16: FSDP shards weights of one type only; use DDP or one device"
    return None


def find_model_type(name: str, kind: Kind = "seq2seq") -> str:
    """Return the ``model_type`` of a backbone from its config alone."""
    config = AutoConfig.from_pretrained(resolve_model(name, kind), trust_remote_code=False)
    return str(config.model_type)


def load_backbone(name: str, dropout: float | None = None) -> PreTrainedModel:
    """Load a language model in fp32, with its output head as it was trained.

    The weights stay in fp32 whatever the precision of the run: in pure bf16 an update of 1e-5
    rounds to nothing, so ``bf16-mixed`` computes in bf16 with these fp32 master weights.

    Args:
        name: Hub id, folder written by ``save_pretrained``, or ``mini``.
        dropout: Dropout rate to set everywhere in the model; None keeps the model's own.

    Raises:
        ValueError: If the model does not generate text.
    """
    path = resolve_model(name)
    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    if not generates_text(config.to_dict()):
        raise ValueError(f"backbone {name!r} is a {config.model_type!r} model, which {NO_TEXT}")
    model = load_weights(_auto_class(config), path)
    if dropout is not None:
        set_dropout(model, dropout)
    record_head(model)
    return model


def sketch_backbone(name: str) -> PreTrainedModel:
    """Build a language model on the meta device: names and shapes without weights."""
    config = AutoConfig.from_pretrained(resolve_model(name), trust_remote_code=False)
    with torch.device("meta"):
        return _auto_class(config).from_config(config, trust_remote_code=False)


def _auto_class(config: PretrainedConfig) -> Any:
    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Keep only each block's input for the backward pass and recompute the block there.

    Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost", arXiv 1604.06174. It engages
    in training mode only. Reentrant checkpointing is not used: it gives a block no gradient where
    its input needs none, as in the first block of a frozen backbone with an adapter.

    Args:
        model: A backbone, with or without adapters.
    """
    with warnings.catch_warnings():
        # Its new name came only after the oldest transformers that setup.cfg allows.
        warnings.filterwarnings("ignore", "`gradient_checkpointing_enable` is deprecated")
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    # transformers gives the embedded input a gradient, and T5's attention its bias of zeros, both
    # for the reentrant kind. With the first, the backward pass would run through all of a backbone
    # that is trained at its end only; with the second, cross-attention would not be fused.
    model.disable_input_require_grads()
    for module in model.modules():
        if "gradient_checkpointing" in vars(module) and not isinstance(module, _CHECKPOINTED):
            module.gradient_checkpointing = False


def load_weights(
    auto_class: Any, path: str, new_head: bool = False, **options: Any
) -> PreTrainedModel:
    """Load a pretrained model in fp32, and refuse weights that would stay random.

    Args:
        auto_class: One of transformers' Auto classes.
        path: Hub id, or folder written by ``save_pretrained``.
        new_head: Accept weights that are missing or have another shape: a head to be trained.
        **options: Further arguments of ``from_pretrained``.

    Raises:
        ValueError: If the weights cannot be read, are missing, or do not have the config's shapes.
    """
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # its tables of keys; one line is enough
    try:
        with reading(path):
            model, info = auto_class.from_pretrained(
                path,
                dtype=torch.float32,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **options,
            )
    finally:
        transformers_logging.set_verbosity(verbosity)
    problems = [
        f"{key} has the shape {list(found)} where the config asks for {list(wanted)}"
        for key, found, wanted in sorted(info["mismatched_keys"])
    ]
    problems += [f"{key} is missing" for key in sorted(info["missing_keys"])]
    if problems and new_head:
        logger.info("%s: new weights, because %s", path, "; ".join(problems))
    elif problems:
        more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise ValueError(
            f"the weights of {path} do not fit its config.json: {problems[0]}{more}; download or "
            "export it again"
        )
    if unused := sorted(info["unexpected_keys"]):
        logger.info("%s: %d weights are not used, such as %s", path, len(unused), unused[0])
    return model


def head_is_tied(model: Any) -> bool:
    """Tell whether the output head is the decoder's embedding (T5 v1.0) or its own matrix."""
    head, decoder = model.get_output_embeddings(), model.get_decoder()
    owner = decoder if isinstance(decoder, PreTrainedModel) else model
    embedding = owner.get_input_embeddings()
    return head.weight is embedding.weight or (
        not head.weight.is_meta and head.weight.data_ptr() == embedding.weight.data_ptr()
    )


def record_head(model: Any) -> None:
    """Record in the config whether the head is tied, as it really is in memory.

    transformers 5 sets ``tie_word_embeddings=True`` on every T5 config, and unties on loading only
    where the checkpoint holds two different matrices. Without this, a later ``tie_weights()``
    (merging, resuming, another load) ties FLAN's head, and an export describes itself wrongly:
    wrong logits and no error. An untied T5 also does not scale the decoder's output by
    d_model^-0.5.
    """
    model.config.tie_word_embeddings = head_is_tied(model)
    if not model.config.tie_word_embeddings and hasattr(model.config, "scale_decoder_outputs"):
        model.config.scale_decoder_outputs = False
