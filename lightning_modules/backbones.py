"""Load, check and export the pretrained encoder-decoder that every method starts from."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    PreTrainedModel,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from common.hub import reading, resolve_model

logger = logging.getLogger(__name__)

_HALF_PRECISIONS = {"16", "16-mixed", "16-true", "fp16", "transformer-engine-float16"}
_PURE_PRECISIONS = {"bf16-true", "transformer-engine"}
_CHECKPOINTED = (GradientCheckpointingLayer, PreTrainedModel)


def find_precision_problem(precision: str | int | None) -> str | None:
    """Say why a Trainer precision cannot be used with T5, or return None where it can."""
    if str(precision) in _HALF_PRECISIONS:
        return (
            f"trainer.precision: {precision!r} is fp16, and T5's feed-forward activations overflow "
            "it (they pass 65,504, the loss turns NaN); use 'bf16-mixed', or '32-true' where bf16 "
            "is slow"
        )
    if str(precision) in _PURE_PRECISIONS:
        return (
            f"trainer.precision: {precision!r} keeps the weights themselves in low precision, "
            "where an update of 1e-5 rounds to nothing; use 'bf16-mixed', which keeps them in fp32"
        )
    return None


def load_backbone(name: str, dropout: float | None = None) -> PreTrainedModel:
    """Load an encoder-decoder language model in fp32, with its output head as it was trained.

    The weights stay fp32 whatever the precision of the run: with pure bf16 weights an update of
    1e-5 rounds to nothing, so ``bf16-mixed`` computes in bf16 over these fp32 masters.

    Args:
        name: Hub id, folder written by ``save_pretrained``, or ``mini``.
        dropout: Dropout rate to set everywhere in the model; None keeps the model's own.

    Raises:
        ValueError: If the model is not an encoder-decoder.
    """
    path = resolve_model(name)
    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    if not config.is_encoder_decoder:
        raise ValueError(
            f"backbone {name!r} is a {config.model_type!r} model, not an encoder-decoder; "
            "alignsum trains encoder-decoders such as google/flan-t5-base"
        )
    with _without_tying_warning(), reading(path):
        model = AutoModelForSeq2SeqLM.from_pretrained(
            path, dtype=torch.float32, trust_remote_code=False
        )
    if dropout is not None:
        set_dropout(model, dropout)
    record_head(model)
    return model


def sketch_backbone(name: str) -> PreTrainedModel:
    """Build an encoder-decoder on the meta device, from its config alone: names and shapes only.

    Whether its head is tied shows in the weights only; see :func:`record_head`.
    """
    config = AutoConfig.from_pretrained(resolve_model(name), trust_remote_code=False)
    with torch.device("meta"):
        return AutoModelForSeq2SeqLM.from_config(config, trust_remote_code=False)


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Keep only the input of each block for the backward pass, which computes the block again.

    Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost", arXiv 1604.06174. It engages
    in training mode only. Not the reentrant kind, which gives a block no gradient at all where its
    input needs none, as the first block of a frozen backbone that has an adapter.

    Args:
        model: A backbone, with or without adapters.
    """
    with warnings.catch_warnings():
        # Its new name came only after the oldest transformers that setup.cfg allows.
        warnings.filterwarnings("ignore", "`gradient_checkpointing_enable` is deprecated")
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    # transformers gives the embedded input a gradient, and T5's attention its bias of zeros, both
    # for the reentrant kind. With the first the backward pass would go through all of a backbone
    # that is trained at its end only; with the second cross-attention would not be fused.
    model.disable_input_require_grads()
    for module in model.modules():
        if "gradient_checkpointing" in vars(module) and not isinstance(module, _CHECKPOINTED):
            module.gradient_checkpointing = False


@contextmanager
def _without_tying_warning() -> Iterator[None]:
    """Silence the advice to set tie_word_embeddings=False: record_head does just that."""

    def is_other(record: logging.LogRecord) -> bool:
        return "tied weights mapping" not in record.getMessage()

    source = logging.getLogger("transformers.modeling_utils")
    source.addFilter(is_other)
    try:
        yield
    finally:
        source.removeFilter(is_other)


def head_is_tied(model: PreTrainedModel) -> bool:
    """Whether the output head is the input embedding itself (T5 v1.0) or its own matrix (FLAN)."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    return head.weight.data_ptr() == embedding.weight.data_ptr()


def record_head(model: PreTrainedModel) -> None:
    """Write into the config whether the head is tied, as it really is in memory.

    transformers 5 sets ``tie_word_embeddings=True`` on every T5 config, and unties on loading only
    where the checkpoint holds two different matrices. Left so, a later ``tie_weights()`` (merging,
    resuming, another load) ties FLAN's head, and an export says the wrong thing about itself: wrong
    logits and no error. An untied T5 also does not scale the decoder's output by d_model^-0.5.
    """
    model.config.tie_word_embeddings = head_is_tied(model)
    if not model.config.tie_word_embeddings and hasattr(model.config, "scale_decoder_outputs"):
        model.config.scale_decoder_outputs = False


def head_logits(model: Any, hidden: Tensor) -> Tensor:
    """Map the decoder's last hidden states [..., d] to logits [..., V], as the forward pass does.

    For those who want logits at some positions only: the vocabulary makes them the widest tensor
    of all.
    """
    if getattr(model.config, "scale_decoder_outputs", False):
        hidden = hidden * model.config.d_model**-0.5
    logits = model.get_output_embeddings()(hidden)
    bias = getattr(model, "final_logits_bias", None)  # BART and its kin
    return logits if bias is None else logits + bias


def set_dropout(model: nn.Module, rate: float) -> None:
    """Set every dropout of a model to ``rate``, in modules, in functional calls and in its config.

    Rate 0 makes training and evaluation the same function, which PPO needs (its ratio is between
    two passes of one policy). ``eval()`` would do that too, but gradient checkpointing would
    never engage.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = rate
        elif isinstance(getattr(module, "dropout", None), float):
            # Attention layers hand this number to a functional dropout.
            setattr(module, "dropout", rate)  # noqa: B010 (mypy takes any attribute for a module)
    config: Any = getattr(model, "config", None)
    for name in ("dropout_rate", "dropout", "attention_dropout", "hidden_dropout_prob"):
        if isinstance(getattr(config, name, None), float):
            setattr(config, name, rate)
